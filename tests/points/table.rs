//! Plays the stories, each with each death that belongs to it, and prints how it went.

use crate::source;
use crate::stories::{POWER_CUT, STORIES, Story};
use crate::world::World;
use futures_util::FutureExt;
use futures_util::stream::{self, StreamExt};
use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// Daemons at once: they wait more than they work.
const AT_ONCE: usize = 10;
/// One run, with its daemon's restart.
const RUN_DEADLINE: Duration = Duration::from_secs(180);
/// Plays only points whose name contains it.
const ONLY: &str = "FLYCI_POINTS_ONLY";

/// Effects of passes that are made whether or not there is something to do: they are met with something to do
/// once this point was passed.
const AFTER: &[(&str, &str)] = &[
    ("mint.take", "after dispatch.bind"),
    ("mint.void_ended", "after lifecycle.stop"),
    ("upkeep.pull_lease", "after dispatch.bind"),
];

/// How the names of effects begin that a gateway has when it starts, if there is something to do for it then.
const LATE: &[&str] = &[
    "intake.found",
    "upkeep.backfill",
    "upkeep.erase",
    "upkeep.keys",
    "upkeep.log",
    "upkeep.redeliver",
    "upkeep.registrations",
    "upkeep.repository_gone",
    "upkeep.rerun",
    "upkeep.scan",
];
/// What is reached soon after the story's end, is reached within this time.
const SOON: Duration = Duration::from_secs(3);

/// How a run went.
struct Run {
    story: &'static str,
    reached: BTreeSet<String>,
    died: bool,
    took: Duration,
    failure: Option<String>,
}

/// Plays all, prints the table, and says whether all went well.
pub async fn play_all() -> ExitCode {
    // What a failed run has to say is told after the table; here its first line.
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        eprintln!("{place}: {}", words(info.payload()).lines().next().unwrap_or_default());
    }));
    let began = Instant::now();
    let all = STORIES.iter().chain([&POWER_CUT]);
    let undisturbed: Vec<Run> =
        stream::iter(all).map(|story| play(story, Vec::new())).buffer_unordered(AT_ONCE).collect().await;
    let mut failures: Vec<String> = undisturbed.iter().filter_map(|run| told(run, "undisturbed")).collect();
    let only = std::env::var(ONLY).unwrap_or_default();
    let points: Vec<String> = source::effects().iter().flat_map(|effect| source::points(effect)).collect();
    let wanted = points.iter().filter(|point| point.contains(&only)).flat_map(|point| {
        let cut = meets(&POWER_CUT, point, &undisturbed).then_some(vec![&POWER_CUT]);
        [meeting(point, &undisturbed)].into_iter().chain(cut).map(|stories| (point.clone(), stories))
    });
    let mut runs: Vec<(String, Run)> = stream::iter(wanted)
        .map(|(point, stories)| async move {
            let run = play_until_it_dies(&point, &stories).await;
            (point, run)
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    runs.sort_by(|(one, _), (other, _)| words_of(one).cmp(&words_of(other)));
    println!("kill -9 of the daemon, restart, and the story's end:");
    for (point, run) in &runs {
        let word = if run.failure.is_none() { "well" } else { "FAILED" };
        println!("  {point:<36} {:<34} {word:<6} {:>5.1} s", run.story, run.took.as_secs_f64());
        failures.extend(told(run, point));
    }
    let took = began.elapsed().as_secs_f64();
    println!("{} points, {} deaths, {} stories, {took:.0} s", points.len(), runs.len(), STORIES.len() + 1);
    for failure in &failures {
        println!("\nFAILED: {failure}");
    }
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Plays the first of the stories in which the daemon dies: what a story meets is chance now and then.
async fn play_until_it_dies(point: &str, stories: &[&'static Story]) -> Run {
    let mut last = None;
    for story in stories {
        let run = play(story, deaths(point)).await;
        if run.died || run.failure.is_some() {
            return run;
        }
        last = Some(run);
    }
    let none = Run { story: "none", reached: BTreeSet::new(), died: false, took: Duration::ZERO, failure: None };
    let what = "no story meets it: tell one in tests/points/stories.rs".to_owned();
    Run { failure: Some(what), ..last.unwrap_or(none) }
}

/// The effect first: what is before it and what is after it stand together.
fn words_of(point: &str) -> (&str, bool) {
    (effect_of(point), point.starts_with("after"))
}

fn effect_of(point: &str) -> &str {
    point.split_once(' ').map_or(point, |(_, effect)| effect)
}

fn told(run: &Run, point: &str) -> Option<String> {
    run.failure.as_ref().map(|failure| format!("{point}, {}: {failure}", run.story))
}

fn meets(story: &Story, point: &str, undisturbed: &[Run]) -> bool {
    // What a pass does at the daemon's start, it does in all stories: only one of them gives it something to do.
    let effect = effect_of(point);
    let is_its_own = match effect {
        "mint.void_ended" => story.name.starts_with("killed"),
        _ if effect.starts_with("upkeep.prune") || effect == "upkeep.trail_prune" => story.name == "old rows",
        _ if effect.starts_with("upkeep.keys") => story.setup.rotates,
        _ => story.dies_late == LATE.iter().any(|prefix| effect.starts_with(prefix)),
    };
    is_its_own && undisturbed.iter().any(|run| run.story == story.name && run.reached.contains(point))
}

fn meeting(point: &str, undisturbed: &[Run]) -> Vec<&'static Story> {
    STORIES.iter().filter(|story| meets(story, point, undisturbed)).collect()
}

/// What must be reached, one after the other, to die at a point.
fn deaths(point: &str) -> Vec<String> {
    let before = AFTER.iter().find(|(effect, _)| *effect == effect_of(point)).map(|(_, before)| (*before).to_owned());
    before.into_iter().chain([point.to_owned()]).collect()
}

async fn play(story: &'static Story, deaths: Vec<String>) -> Run {
    let began = Instant::now();
    let at_once = if story.dies_late { &[][..] } else { &deaths[..] };
    let world = World::new(&story.setup, at_once).await;
    let told = async {
        (story.play)(&world, &deaths).await;
        if !deaths.is_empty() {
            world.may_die_within(SOON).await;
        }
        world.nothing_is_left().await;
    };
    let failure = match timeout(RUN_DEADLINE, AssertUnwindSafe(told).catch_unwind()).await {
        Ok(Ok(())) => None,
        Ok(Err(panic)) => Some(words(panic.as_ref())),
        Err(_) => Some(format!("it goes on after {RUN_DEADLINE:?}")),
    };
    let (reached, died) = (world.reached(), world.died());
    world.end().await;
    Run { story: story.name, reached, died, took: began.elapsed(), failure }
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_owned()
}
