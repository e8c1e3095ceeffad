//! Images come from registries, and go to them: Debian's `docker-registry` on loopback, `skopeo`, and a proxy between
//! that does what registries and networks do on a bad day.

mod bad_days;
mod follow;
mod pulls;
mod support;
