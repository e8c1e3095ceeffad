//! The rules of this repository that no compiler knows, as tests: `cargo test --test tidy`.
//!
//! Needs nothing but the standard library, so `rustc --edition 2024 --test tests/tidy.rs` runs it in a
//! second, before anything is built. Each rule is first tried on a small example that breaks it, because
//! a check that cannot fail is no check. What the rules are for: `docs/style.md`.

#[path = "tidy/layers.rs"]
mod layers;
#[path = "tidy/points.rs"]
mod points;
#[path = "tidy/rust.rs"]
mod rust;
#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/texts.rs"]
mod texts;
#[path = "tidy/tree.rs"]
mod tree;

use source::Source;
use tree::Tree;

/// A rule looks at the whole tree and answers one line per fault: where, what, and what to do.
type Rule = fn(&Tree) -> Vec<String>;

/// The rule finds one fault in each bad example and none in the good ones; and none in the repository.
#[track_caller]
fn holds(rule: Rule, bad: &[(&str, &str)], good: &[(&str, &str)]) {
    for example in bad {
        let found = rule(&Tree::of(&[*example]));
        assert_eq!(found.len(), 1, "the rule must find one fault in this example, not {found:?}:\n{}", example.1);
        assert!(found[0].starts_with(example.0), "the message must begin with the file's name: {}", found[0]);
    }
    for example in good {
        let found = rule(&Tree::of(&[*example]));
        assert!(found.is_empty(), "the rule must accept this example, not answer {found:?}:\n{}", example.1);
    }
    let faults = rule(Tree::of_the_repository());
    assert!(faults.is_empty(), "{} to mend:\n  {}", faults.len(), faults.join("\n  "));
}

#[test]
fn modules_use_only_what_lies_below_them() {
    holds(
        layers::imports_point_down,
        &[
            ("src/domain/job.rs", "use crate::store::jobs;"),
            ("src/store/jobs.rs", "use crate::{domain::ids::JobId, intake};"),
            ("src/mint/mod.rs", "fn f() { crate::web::serve() }"),
            ("src/novelty.rs", "//! A module that has no place yet."),
        ],
        &[
            ("src/mint/mod.rs", "use crate::{domain::ids::{JobId, web}, store};"),
            ("src/store/jobs.rs", "//! Read by [`crate::web`].\nuse crate::domain::ids::JobId;"),
            ("src/store/jobs.rs", "#[cfg(test)]\nmod tests {\n    use crate::intake;\n}\n"),
        ],
    );
}

#[test]
fn sql_is_written_in_the_store_only() {
    holds(
        rust::sql_in_the_store,
        &[
            ("src/mint/mod.rs", "async fn f() { sqlx::query!(\"SELECT 1\"); }"),
            ("src/web/admin.rs", "use sqlx::{PgPool, query_as};"),
            ("src/app/mod.rs", "fn f(b: sqlx::QueryBuilder<Postgres>) {}"),
        ],
        &[
            ("src/store/jobs.rs", "async fn f() { sqlx::query!(\"SELECT 1\"); }"),
            ("tests/it/demand.rs", "async fn f() { sqlx::query(\"SELECT 1\"); }"),
            ("src/mint/mod.rs", "use sqlx::PgPool;"),
        ],
    );
}

#[test]
fn the_domain_has_no_clock_and_touches_nothing() {
    holds(
        rust::the_domain_is_pure,
        &[
            ("src/domain/job.rs", "fn f() { chrono::Utc::now(); }"),
            ("src/domain/vm.rs", "async fn f() {}"),
            ("src/domain/labels.rs", "use std::fs;"),
        ],
        &[
            ("src/domain/job.rs", "//! Without async.\nfn next(now: DateTime<Utc>) -> State {}"),
            ("src/app/mod.rs", "async fn f() { chrono::Utc::now(); }"),
        ],
    );
}

#[test]
fn unsafe_is_kept_where_it_cannot_be_avoided() {
    holds(
        rust::unsafe_in_its_places,
        &[("src/web/mod.rs", "fn f() { unsafe { g() } }"), ("src/store/mod.rs", "unsafe fn f() {}")],
        &[
            ("src/web/mod.rs", "/// Not `unsafe`.\nfn f() -> &str { \"unsafe\" }"),
            ("src/hypervisor/vz/mod.rs", "fn f() { unsafe { g() } }"),
        ],
    );
}

#[test]
fn processes_are_started_in_few_places() {
    holds(
        rust::processes_in_their_places,
        &[
            ("src/mint/mod.rs", "use tokio::process::Command;"),
            ("src/web/tls.rs", "fn f() { std::process::Command::new(\"openssl\"); }"),
        ],
        &[
            ("src/hypervisor/qemu/mod.rs", "fn f() { std::process::Command::new(\"qemu\"); }"),
            ("src/cli/mod.rs", "fn f() -> std::process::ExitCode { clap::Command::new(\"flyci\"); }"),
        ],
    );
}

#[test]
fn every_task_of_the_daemon_has_an_owner() {
    holds(
        rust::tasks_have_owners,
        &[
            ("src/mint/mod.rs", "fn f() { tokio::spawn(g()); }"),
            ("src/web/mod.rs", "fn f() { std::thread::spawn(|| ()); }"),
        ],
        &[
            ("src/app/mod.rs", "fn f() { tokio::spawn(g()); }"),
            ("src/lifecycle/mod.rs", "fn f(&self) { self.tasks.spawn(g()); }"),
            ("src/mint/mod.rs", "#[cfg(test)]\nmod tests {\n    fn f() { tokio::spawn(g()); }\n}\n"),
        ],
    );
}

#[test]
fn every_file_says_what_it_owns() {
    holds(
        rust::files_say_what_they_own,
        &[("src/a.rs", "use std::fmt;\n"), ("tests/it/a.rs", "\n//! Too late.\n")],
        &[("src/a.rs", "//! Owns a.\nuse std::fmt;\n"), ("tests/it/main.rs", "#![allow(x)]\n//! Stories.\n")],
    );
}

#[test]
fn functions_have_at_most_70_lines() {
    let long = format!("async fn long(\n    a: u8,\n) -> [u8; 2] {{\n{}}}\n", "    g();\n".repeat(67));
    let tight = format!("fn tight() {{\n{}}}\nfn other() {{}}\n", "    \"}\";\n".repeat(68));
    holds(
        rust::functions_are_short,
        &[("src/a.rs", &long)],
        &[("src/a.rs", &tight), ("src/a.rs", "trait A { fn a(&self) -> u8; fn b() {} }")],
    );
}

#[test]
fn files_have_at_most_500_lines_before_their_tests() {
    let long = "// one\n".repeat(501);
    let tested = format!("{}#[cfg(test)]\nmod tests {{\n{}}}\n", "// one\n".repeat(499), "// two\n".repeat(300));
    holds(rust::files_are_short, &[("src/a.rs", &long)], &[("src/a.rs", &tested)]);
}

#[test]
fn nothing_is_left_half_done_or_ends_the_daemon() {
    holds(
        rust::nothing_half_done,
        &[
            ("src/a.rs", "fn f() { g().unwrap(); }"),
            ("agent/src/a.rs", "fn f() { todo!() }"),
            ("fake-github/src/a.rs", "fn f() { unimplemented!(\"later\") }"),
            ("src/b.rs", "fn f(x: u8) -> u8 { dbg!(x) }"),
        ],
        &[
            ("src/a.rs", "fn f() { g().expect(\"checked above\").unwrap_or(1); }"),
            ("src/a.rs", "//! Not `x.unwrap()`.\n#[cfg(test)]\nmod tests {\n    fn f() { g().unwrap(); }\n}\n"),
            ("tests/it/a.rs", "fn f() { g().unwrap(); }"),
        ],
    );
}

#[test]
fn lints_are_switched_off_with_a_reason() {
    holds(
        rust::exceptions_have_reasons,
        &[("src/a.rs", "#[allow(dead_code)]\nfn f() {}"), ("src/b.rs", "#![expect(clippy::x)]")],
        &[("src/a.rs", "#[expect(clippy::too_many_lines, reason = \"a table\")]\nfn f() {}")],
    );
}

#[test]
fn no_test_is_skipped_or_sleeps_until_it_hopes_to_be_right() {
    holds(
        rust::tests_wait_for_conditions,
        &[
            ("tests/it/a.rs", "#[test]\n#[ignore]\nfn f() {}"),
            ("tests/it/b.rs", "async fn f() { tokio::time::sleep(SECOND).await; }"),
        ],
        &[("tests/it/support/wait.rs", "async fn f() { tokio::time::sleep(STEP).await; }")],
    );
}

#[test]
fn every_dependency_says_what_it_is_for() {
    let listed = "| `serde` | reads and writes JSON |";
    let tree = Tree::of(&[
        ("agent/Cargo.toml", "[dependencies]\nserde = \"1\"\n[dev-dependencies]\ninsta = \"1\"\n"),
        ("docs/dependencies.md", listed),
    ]);
    let found = texts::dependencies_are_explained(&tree);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("agent/Cargo.toml:4: `insta`"), "{found:?}");
    holds(
        texts::dependencies_are_explained,
        &[("Cargo.toml", "[target.'cfg(unix)'.dependencies.no-such-crate]\n")],
        &[],
    );
}

#[test]
fn the_changelog_has_a_place_for_what_is_not_released() {
    holds(
        texts::changelog_is_kept,
        &[
            ("CHANGELOG.md", "# Changelog\n\n## [0.1.0] - 2026-11-24\n"),
            ("CHANGELOG.md", "# Changelog\n\n## [Unreleased]\n\nNothing under a heading.\n"),
        ],
        &[("CHANGELOG.md", "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- A thing.\n")],
    );
}

#[test]
fn links_between_documents_lead_somewhere() {
    holds(
        texts::links_lead_somewhere,
        &[
            ("docs/a.md", "See [b](b.md)."),
            ("docs/c.md", "# Title\n\nSee [above](#titel)."),
            ("README.md", "See [the rules](docs/style.md#no-such-heading-there)."),
        ],
        &[("docs/a.md", "# One, and `two`!\n[above](#one-and-two) [web](https://example.com/x) `[no](link.md)`")],
    );
}

#[test]
fn files_and_tests_that_documents_name_are_there() {
    holds(
        texts::named_things_exist,
        &[("docs/a.md", "See `src/store/no_such_file.rs`."), ("docs/b.md", "Tested by `tests/tidy.rs::no_such_test`.")],
        &[
            ("docs/a.md", "Tested by `tests/tidy.rs::links_between_documents_lead_somewhere`, in `tests/`."),
            ("docs/b.md", "```text\nsrc/store/no_such_file.rs\n```\n"),
        ],
    );
}

#[test]
fn the_repository_speaks_of_the_product_alone() {
    holds(
        texts::no_words_of_the_workshop,
        &[
            ("docs/a.md", "Run it in /work/main."),
            ("src/a.rs", "// TODO: later"),
            ("script/x", "cd ../worktree"),
            ("src/c.rs", "//! (under construction)"),
        ],
        &[("docs/a.md", "A network of the host's.")],
    );
}

#[test]
fn scripts_stop_at_the_first_failure() {
    holds(
        texts::scripts_are_strict,
        &[("script/a", "#!/bin/sh\necho hi\n"), (".ci/run", "set -eu\n")],
        &[("script/a", "#!/usr/bin/env bash\n# Says hi.\nset -euo pipefail\necho hi\n")],
    );
}

#[test]
fn the_scanner_tells_code_from_text() {
    let source = Source::new(
        "src/a.rs",
        "let a = \"// \\\" unsafe\"; // unsafe\nlet b = r#\"un\"safe\"#; let c = '\"'; fn d<'a>() {}",
    );
    assert!(!source.code().contains("unsafe"), "{}", source.code());
    assert!(source.code().contains("let b ="), "{}", source.code());
    assert!(source.code().contains("fn d<'a>() {}"), "{}", source.code());
    assert_eq!(source.code().lines().count(), 2);
}

#[test]
fn what_a_process_changes_is_a_point_where_tests_can_kill_it() {
    holds(
        points::effects_are_points,
        &[
            ("src/intake/mod.rs", "async fn f() { tx.commit().await?; }"),
            ("src/mint/mod.rs", "async fn f() { self.github.mint(name).await?; }"),
            ("src/mint/mod.rs", "async fn f() { runners::void(\n    &self.pool, id).await?; }"),
            ("src/lifecycle/serving.rs", "async fn f() { guest.start(start).await?; }"),
            (
                "src/upkeep/sweep.rs",
                "async fn f() { let gone = machine.hypervisor.destroy(vm); effect!(\"a\", gone.await) }",
            ),
        ],
        &[
            ("src/mint/mod.rs", "async fn f() { effect!(\"mint.call\", self.github.mint(name).await)?; }"),
            (
                "src/mint/mod.rs",
                "async fn f() { self.github.find_runner(name).await?; place::open(&self.pool, id).await?; }",
            ),
            ("src/lifecycle/ending.rs", "async fn f() { vms::advance(&mut *tx, vm.id).await?; }"),
            ("src/web/admin/mod.rs", "async fn f() { tx.commit().await?; }"),
        ],
    );
    holds(
        points::points_have_names,
        &[
            ("src/mint/mod.rs", "async fn f() { effect!(\"call\", ()); }"),
            ("src/mint/mod.rs", "async fn f() { effect!(\"mint.a\", ()); effect!(\n \"mint.a\", ()); }"),
        ],
        &[("src/mint/mod.rs", "// — —\nasync fn f() { effect!(\n    \"mint.call\", ()); }")],
    );
}
