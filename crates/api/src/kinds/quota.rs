//! ResourceQuotas and LimitRanges: what a namespace may use.

use super::AGE;
use crate::kind::{Column, Entry, Kind, Strategy, keep_all_but_status, keep_status, wipe_status};
use crate::{duration, limits, meta, quota, walk};

/// The entry of ResourceQuota.
pub static RESOURCE_QUOTA: Kind = Kind::Listed(&Entry {
    short_names: &["quota"],
    subresources: &["status"],
    strategy: Strategy {
        default: |o| walk::default(o, "spec", serde_json::json!({})),
        prepare_create: |o| {
            wipe_status(o);
            walk::set(o, "status", serde_json::json!({}));
        },
        prepare_update: keep_status,
        prepare_status_update: keep_all_but_status,
        validate: quota::validate,
        validate_update: quota::validate_update,
        validate_status_update: quota::validate_status_update,
        ..Strategy::PLAIN
    },
    columns: &[
        Column::object_name(),
        Column::new("Request", "string", "What is used of what may be asked for."),
        Column::new("Limit", "string", "What is used of what may be allowed at most."),
        Column::new("Age", "string", AGE),
    ],
    cells: |o, now| {
        let (mut requests, mut limits) = (Vec::new(), Vec::new());
        let mut hard: Vec<_> = walk::map(o, "status.hard").iter().collect();
        hard.sort_by_key(|(name, _)| *name);
        for (name, hard) in hard {
            let used = walk::map(o, "status.used").get(name).and_then(|v| v.as_str()).unwrap_or("0");
            let text = format!("{name}: {used}/{}", hard.as_str().unwrap_or("0"));
            if name.starts_with("limits.") { limits.push(text) } else { requests.push(text) }
        }
        vec![
            meta::name(o).into(),
            requests.join(", ").into(),
            limits.join(", ").into(),
            duration::age(o, now).into(),
        ]
    },
    ..Entry::of("", "v1", ("ResourceQuota", "ResourceQuotaList"), ("resourcequotas", "resourcequota"))
});

/// The entry of LimitRange.
pub static LIMIT_RANGE: Kind = Kind::Listed(&Entry {
    short_names: &["limits"],
    strategy: Strategy {
        default: limits::default,
        validate: limits::validate,
        validate_update: |new, _| {
            let mut errors = meta::validate_base(new, meta::NameRule::Subdomain);
            errors.extend(limits::validate(new));
            errors
        },
        ..Strategy::PLAIN
    },
    ..Entry::of("", "v1", ("LimitRange", "LimitRangeList"), ("limitranges", "limitrange"))
});
