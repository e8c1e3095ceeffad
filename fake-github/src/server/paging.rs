//! Pages by number, with GitHub's Link header; lists of at most 100.

use axum::http::HeaderValue;
use axum::http::header::LINK;
use axum::response::Response;
use serde::Deserialize;

/// Entries on a page unless asked otherwise.
const DEFAULT: usize = 30;
/// Entries on a page at most.
pub const MOST: usize = 100;

/// `page` and `per_page`.
#[derive(Debug, Default, Deserialize)]
pub struct Page {
    page: Option<usize>,
    per_page: Option<usize>,
}

impl Page {
    /// A page by its parameters.
    pub fn new(page: Option<usize>, per_page: Option<usize>) -> Self {
        Self { page, per_page }
    }

    /// Entries on a page.
    pub fn size(&self) -> usize {
        self.per_page.unwrap_or(DEFAULT).clamp(1, MOST)
    }

    fn number(&self) -> usize {
        self.page.unwrap_or(1).max(1)
    }

    /// The entries of this page.
    pub fn cut<T>(&self, all: impl IntoIterator<Item = T>) -> Vec<T> {
        all.into_iter().skip((self.number() - 1).saturating_mul(self.size())).take(self.size()).collect()
    }

    /// Adds the Link header for `total` entries; `url` may hold other parameters.
    pub fn link(&self, mut response: Response, url: &str, total: usize) -> Response {
        let last = total.div_ceil(self.size()).max(1);
        let join = if url.contains('?') { '&' } else { '?' };
        let to = |page: usize, rel: &str| format!("<{url}{join}per_page={}&page={page}>; rel=\"{rel}\"", self.size());
        let mut links = Vec::new();
        if self.number() > 1 {
            links.push(to(self.number() - 1, "prev"));
            links.push(to(1, "first"));
        }
        if self.number() < last {
            links.push(to(self.number() + 1, "next"));
            links.push(to(last, "last"));
        }
        put_link(&mut response, &links);
        response
    }
}

/// Sets the Link header, if there is a link.
pub fn put_link(response: &mut Response, links: &[String]) {
    if links.is_empty() {
        return;
    }
    // Names in a URL are limited to what a header may hold.
    if let Ok(value) = HeaderValue::from_str(&links.join(", ")) {
        response.headers_mut().insert(LINK, value);
    }
}
