//! The real kube-apiserver, asked the same, gives the same answers.
//!
//! `PORTOLAN_KUBE_APISERVER` and `PORTOLAN_ETCD` name the programs (1.36, 3.6), `PORTOLAN_REQUESTS` the number of requests and
//! `PORTOLAN_SEED` what they are drawn from; `PORTOLAN_KINDS` names the kinds that are asked about, if not all of them.
//! Compared are status, reason, message, causes with their paths, warnings and the whole object that comes back. Where ours differs on purpose, the reason is one of [`known::DIFFERENCES`], and
//! docs/reference/differences.md has it.

mod access; // who may
mod aim; // what the dice seldom do
mod custom; // kinds that clients define
mod dice; // random numbers that a seed repeats
mod draw; // requests
mod each; // one object of each other kind
mod kinds; // what they are about
mod known; // differences on purpose
mod normal; // what can't be equal
mod others; // the smaller kinds
mod peer; // the real server
mod pods; // Pods and what makes them
mod pointer; // fields by their places
mod rest; // the kinds of which each.rs has an object
mod rows; // which rules were tried
mod services; // Services
mod shrink; // from a difference to its cause
mod step; // one request
mod world; // both servers

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;

use draw::Drawer;
use kinds::{SERVICES, Spec};
pub use peer::Member;
use peer::Programs;
use serde_json::Value;
use step::{Doing, Step};
use world::{Answers, Difference, PLENTY, SCARCE, Shape, World};

const PROMISE: &str = "the real kube-apiserver gives the same answers";

/// Past the harness, which swallows what passing tests print.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// What a run has found.
#[derive(Default)]
struct Found {
    asked: usize,
    refused: usize,
    /// Of each kind: how many were asked, and how many of them the real server refused.
    kinds: BTreeMap<&'static str, (usize, usize)>,
    rows: rows::Counts,
    on_purpose: BTreeMap<&'static str, usize>,
    /// Unexplained: how often, and one example with what was asked before of the same kind.
    unexplained: BTreeMap<String, (usize, Vec<Step>)>,
    order: Vec<String>,
}

/// Asks about Services in both clusters.
async fn services(programs: &Programs, seed: u64, requests: usize, found: &mut Found) {
    found.rows = rows::none();
    for (shape, share) in [(PLENTY, 85), (SCARCE, 15)] {
        run(programs, shape, &[(1, &SERVICES)], seed, requests * share / 100, found).await;
    }
}

async fn run(
    programs: &Programs,
    shape: Shape,
    kinds: &[(usize, &'static Spec)],
    seed: u64,
    requests: usize,
    found: &mut Found,
) {
    let mut world = World::start(programs, shape).await;
    let mut drawer = Drawer::new(seed, shape);
    let mut history: Vec<Step> = Vec::new();
    for _ in 0..requests {
        let kind = drawer.dice.weigh(kinds);
        let step = drawer.step(kind);
        let answers = world.ask(&step).await;
        drawer.note(&step, &answers.real);
        found.asked += 1;
        found.refused += usize::from(answers.real.code >= 400);
        let of_kind = found.kinds.entry(kind.plural).or_default();
        of_kind.0 += 1;
        of_kind.1 += usize::from(answers.real.code >= 400);
        rows::count(&step, &answers.real, &mut found.rows);
        history.push(step.clone());
        let mut differences = answers.differences();
        let mut lasts = false;
        differences.retain(|difference| match known::reason(&step, &answers, difference) {
            Some(reason) => {
                lasts |= known::lasts(reason);
                *found.on_purpose.entry(reason).or_default() += 1;
                false
            }
            None => true,
        });
        let made = [answers.real.made.as_str(), answers.ours.made.as_str()];
        // What one has done on purpose and the other hasn't is undone.
        let parted = answers.real.code != answers.ours.code || lasts;
        if differences.is_empty() && !parted {
            // Nobody comes back to a name that the dice made.
            if step.name.is_empty() && matches!(step.doing, Doing::Create(_)) {
                world.remove(&step, made).await;
            }
            continue;
        }
        if differences.is_empty() {
            world.remove(&step, made).await;
            drawer.forget(&step);
            continue;
        }
        let signature = signature(&step, &answers, &differences);
        let entry = found.unexplained.entry(signature.clone()).or_default();
        entry.0 += 1;
        if entry.0 == 1 {
            let mine = history.iter().filter(|before| before.kind.plural == step.kind.plural);
            let mine: Vec<Step> = mine.cloned().collect();
            let from = mine.len().saturating_sub(number("PORTOLAN_BEFORE", 60) as usize);
            entry.1 = mine[from..].to_vec();
            found.order.push(signature);
        }
        // The same again from here.
        world.remove(&step, made).await;
        drawer.forget(&step);
        if matches!(step.doing, Doing::DeleteAll) || step.name.is_empty() {
            world.clear(step.kind).await;
        }
    }
    let shrunk = number("PORTOLAN_SHRINK", 3) as usize;
    // The most frequent first.
    let mut examples: Vec<(String, usize, Vec<Step>)> = std::mem::take(&mut found.order)
        .into_iter()
        .map(|signature| {
            let (count, steps) = found.unexplained[&signature].clone();
            (signature, count, steps)
        })
        .collect();
    examples.sort_by_key(|(_, count, _)| std::cmp::Reverse(*count));
    for (index, (signature, count, steps)) in examples.into_iter().enumerate() {
        let shortest = if index < shrunk { shrink::shrink(&mut world, steps).await } else { steps };
        let shown = if index < shrunk { &shortest[..] } else { &shortest[shortest.len() - 1..] };
        let lines: Vec<String> = shown.iter().map(|step| format!("    {step}")).collect();
        say(&format!("{count} times {signature}\n  by\n{}", lines.join("\n")));
    }
}

/// What differs, as a text that is alike for alike differences.
fn signature(step: &Step, answers: &Answers, differences: &[Difference]) -> String {
    let brief = |value: &Value| {
        let text = value.to_string();
        let cut = text.char_indices().nth(2000).map_or(text.len(), |(at, _)| at);
        text[..cut].to_owned()
    };
    let mut lines = vec![format!("{} {}", step.kind.plural, step.subresource)];
    let (real, ours) = (&answers.real.body, &answers.ours.body);
    if real["message"] != ours["message"] && real["kind"] == "Status" {
        // The rest follows from it.
        let say = |code: u16, body: &Value| format!("{code} {} {}", body["reason"], brief(&body["message"]));
        lines.push(format!("    real {}", say(answers.real.code, real)));
        lines.push(format!("    ours {}", say(answers.ours.code, ours)));
    } else {
        for d in differences.iter().take(6) {
            lines.push(format!("  {}\n    real {}\n    ours {}", d.place, brief(&d.real), brief(&d.ours)));
        }
    }
    lines.join("\n")
}

fn conclude(what: &str, seed: u64, found: &Found) {
    say(&format!(
        "{what}: seed {seed}, {} requests, {} of them refused by the real server",
        found.asked, found.refused
    ));
    for (kind, (asked, refused)) in &found.kinds {
        say(&format!("  {asked:6}  {kind}, {refused} of them refused"));
    }
    for (row, count) in &found.rows {
        say(&format!("  {count:6}  {row}"));
    }
    for (reason, count) in &found.on_purpose {
        say(&format!("  {count:6}  on purpose: {reason}"));
    }
    let unexplained: usize = found.unexplained.values().map(|(count, _)| count).sum();
    assert!(unexplained == 0, "{what}: seed {seed}: {unexplained} of {} answers differ", found.asked);
}

#[test]
fn every_difference_on_purpose_is_documented_and_none_else() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/differences.md");
    let text = std::fs::read_to_string(path).expect("the document");
    let documented: BTreeSet<String> =
        text.lines().filter_map(|line| line.strip_prefix("### ")).map(str::to_lowercase).collect();
    let excused: BTreeSet<String> = known::DIFFERENCES.iter().map(|reason| reason.to_lowercase()).collect();
    assert_eq!(excused, documented, "the differences that are let pass and the headings of {path}");
}

#[tokio::test]
async fn the_real_server_answers_alike_about_services() {
    let Some(programs) = Programs::find() else {
        return say(&format!(
            "skipped: {PROMISE}: PORTOLAN_KUBE_APISERVER and PORTOLAN_ETCD name no programs"
        ));
    };
    let (seed, requests) = (number("PORTOLAN_SEED", 1), number("PORTOLAN_REQUESTS", 400) as usize);
    let mut found = Found::default();
    services(&programs, seed, requests, &mut found).await;
    conclude("services", seed, &found);
    // Each rule has to be tried often, where there are requests enough.
    if requests >= 10_000 {
        let seldom: Vec<_> = found.rows.iter().filter(|(_, count)| **count < 20).collect();
        assert!(seldom.is_empty(), "tried too seldom: {seldom:?}");
    }
}

#[tokio::test]
async fn the_real_server_answers_alike_about_other_kinds() {
    let Some(programs) = Programs::find() else {
        return say(&format!(
            "skipped: {PROMISE}: PORTOLAN_KUBE_APISERVER and PORTOLAN_ETCD name no programs"
        ));
    };
    let (seed, requests) = (number("PORTOLAN_SEED", 1), number("PORTOLAN_REQUESTS", 400) as usize);
    let wanted = std::env::var("PORTOLAN_KINDS").ok();
    let wants = |plural: &str| wanted.as_deref().is_none_or(|all| all.split(',').any(|kind| kind == plural));
    let kinds: Vec<(usize, &'static Spec)> = kinds::others().filter(|(_, kind)| wants(kind.plural)).collect();
    let mut found = Found { rows: rows::none(), ..Found::default() };
    run(&programs, PLENTY, &kinds, seed, requests, &mut found).await;
    found.rows.clear();
    conclude("other kinds", seed, &found);
}

#[tokio::test]
async fn the_real_server_answers_alike_about_an_object_of_each_kind() {
    let Some(programs) = Programs::find() else {
        return say(&format!(
            "skipped: {PROMISE}: PORTOLAN_KUBE_APISERVER and PORTOLAN_ETCD name no programs"
        ));
    };
    let world = World::start(&programs, PLENTY).await;
    let (different, asked) = each::differences(&world).await;
    say(&format!("each kind: {asked} requests, {} answers differ", different.len()));
    different.iter().for_each(|text| say(text));
    assert!(different.is_empty(), "{} of {asked} answers differ", different.len());
}
