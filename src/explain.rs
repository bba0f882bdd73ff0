//! How an answer of `explain` and `trace` reads on a terminal.

use portolan_explain::cause::Cause;
use portolan_explain::report::{PathSeen, Report};

use crate::lab::table::render;

/// At most so many backends of a set are shown; `-o json` has all.
const MOST: usize = 10;

/// The whole answer.
pub fn text(report: &Report) -> String {
    let mut text = head(report);
    for (i, cause) in report.causes.iter().enumerate() {
        text.push('\n');
        text.push_str(&cause_text(if i == 0 { "CAUSE" } else { "ALSO" }, cause));
    }
    if let Some(path) = &report.path {
        text.push('\n');
        text.push_str(&path_text(path));
    }
    if !report.frontends.is_empty() {
        let many =
            report.frontends.iter().flat_map(|r| &r.nodes).collect::<std::collections::BTreeSet<_>>().len();
        let nodes =
            |all: &[String]| if all.len() == many && many > 1 { "all".to_owned() } else { all.join(",") };
        let rows = report.frontends.iter().map(|row| {
            let inside = if row.inside.is_empty() { "the same" } else { &row.inside };
            vec![
                row.frontend.clone(),
                row.kind.into(),
                row.port.clone(),
                row.action.clone(),
                inside.into(),
                nodes(&row.nodes),
            ]
        });
        text.push('\n');
        text.push_str(&render(
            &["FRONTEND", "KIND", "PORT", "FROM ANYWHERE", "FROM THE NODE AND ITS PODS", "NODES"],
            &rows.collect::<Vec<_>>(),
        ));
        let rows = report.sets.iter().map(|row| {
            let backends = match row.backends.len() {
                0 => "<none>".to_owned(),
                all if all > MOST => format!("{}, and {} more", row.backends[..MOST].join(", "), all - MOST),
                _ => row.backends.join(", "),
            };
            vec![
                row.port.clone(),
                row.family.clone(),
                row.policy.into(),
                nodes(&row.nodes),
                row.rule.clone(),
                backends,
            ]
        });
        text.push('\n');
        text.push_str(&render(
            &["PORT", "FAMILY", "POLICY", "NODES", "ENDPOINTS USED", "BACKENDS"],
            &rows.collect::<Vec<_>>(),
        ));
    }
    if let Some(kernel) = &report.kernel {
        let rows = kernel.checks.iter().map(|c| vec![kernel.node.clone(), c.what.clone(), c.seen.clone()]);
        text.push('\n');
        text.push_str(&render(&["KERNEL OF", "LOOKED AT", "SEEN"], &rows.collect::<Vec<_>>()));
    }
    if !report.notes.is_empty() {
        text.push('\n');
        for note in &report.notes {
            text.push_str(&cause_text("NOTE", note));
        }
    }
    if !report.assumed.is_empty() {
        text.push('\n');
        for assumed in &report.assumed {
            text.push_str(&format!("({assumed})\n"));
        }
    }
    text
}

fn head(report: &Report) -> String {
    let verdict = match (&report.path, report.causes.first()) {
        (Some(path), None) if path.outcome == "forwarded" => "answers".to_owned(),
        (Some(path), None) => path.outcome.to_owned(),
        (None, None) => "answers".to_owned(),
        (_, Some(cause)) => format!("doesn't answer: {}", cause.kind),
    };
    let mut text = format!("{}: {verdict}\n", report.question);
    if let Some(service) = &report.service {
        let selector: Vec<String> = service.selector.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let selects = match selector.is_empty() {
            true => "no selector".to_owned(),
            false => {
                format!(
                    "selects {}: {} pod{}, {} ready",
                    selector.join(","),
                    service.pods,
                    if service.pods == 1 { "" } else { "s" },
                    service.ready
                )
            }
        };
        let name = if report.path.is_some() { format!("service {}: ", service.name) } else { String::new() };
        text.push_str(&format!("{name}type {}, {selects}\n", service.type_));
    }
    text
}

fn cause_text(title: &str, cause: &Cause) -> String {
    let mut text = format!("{title:<8}{}\n        {}: {}\n", cause.text, cause.object, cause.field);
    if !cause.remedy.is_empty() {
        text.push_str(&format!("{:<8}{}\n", "REMEDY", cause.remedy));
    }
    text
}

fn path_text(path: &PathSeen) -> String {
    let mut text =
        format!("{:<8}{}\n{:<8}{}\n{:<8}node {}\n\n", "FROM", path.from, "TO", path.to, "DECIDES", path.node);
    let steps = path.steps.iter().enumerate();
    let rows = steps.map(|(i, step)| {
        vec![(i + 1).to_string(), step.object.clone(), step.field.clone(), step.text.clone()]
    });
    text.push_str(&render(&["STEP", "OBJECT", "FIELD", "WHAT FOLLOWS"], &rows.collect::<Vec<_>>()));
    text.push_str(&format!("\n{:<8}{}", "OUTCOME", path.outcome));
    match path.backends.len() {
        0 => {}
        1 => text.push_str(" to the one backend"),
        n => text.push_str(&format!(" to one of {n} backends")),
    }
    text.push('\n');
    if let Some(source) = &path.source_seen {
        text.push_str(&format!("{:<8}the address that the backend sees is {source}\n", "SOURCE"));
    }
    if let Some(seconds) = path.sticky_seconds {
        text.push_str(&format!("{:<8}the client keeps its backend for {seconds} s\n", "STICKY"));
    }
    if !path.backends.is_empty() {
        let rows = path.backends.iter().map(|b| vec![b.address.clone(), b.hops.join(" > ")]);
        text.push('\n');
        text.push_str(&render(&["BACKEND", "HOPS"], &rows.collect::<Vec<_>>()));
    }
    text
}
