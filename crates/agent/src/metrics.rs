//! The page that Prometheus reads: kube-proxy's names where they mean the same here, and our own.

use std::fmt::Display;
use std::time::{Duration, SystemTime};

use portolan_dataplane::Counters;
use portolan_metrics::{Page, Process};

use crate::meters::{Meters, Readings};

/// The page, from everything that there is to say. Counters are `None` where the kernel can't be asked.
pub(crate) fn page(meters: &Meters, counters: Option<Counters>, process: Option<Process>) -> String {
    let mut page = Page::default();
    meters.look(|readings| kube_proxy(&mut page, readings));
    meters.look(|readings| ours(&mut page, readings));
    if let Some(Counters { from_outside, unallocated, bounced, missed }) = counters {
        page.head(
            "portolan_dropped_packets_total",
            "counter",
            "Packets that the node's tables dropped or refused, by reason.",
        );
        page.value("portolan_dropped_packets_total", "reason=\"cluster-ip-from-outside\"", from_outside);
        page.value("portolan_dropped_packets_total", "reason=\"unallocated\"", unallocated);
        page.value("portolan_dropped_packets_total", "reason=\"bounced\"", bounced);
        page.value("portolan_dropped_packets_total", "reason=\"missed\"", missed);
    }
    if let Some(process) = process {
        process.write(&mut page);
    }
    page.text()
}

/// One transaction programs both families, so what kube-proxy counts for each of its two proxiers is the same for both.
const FAMILIES: [&str; 2] = ["ip_family=\"IPv4\"", "ip_family=\"IPv6\""];

fn kube_proxy(page: &mut Page, readings: &Readings) {
    let name = "kubeproxy_sync_proxy_rules_duration_seconds";
    page.head(name, "histogram", "Time until the kernel had a plan or a change of it.");
    let both = readings.full.with(&readings.partial);
    FAMILIES.iter().for_each(|family| page.histogram(name, family, &both));
    let name = "kubeproxy_sync_full_proxy_rules_duration_seconds";
    page.head(name, "histogram", "Time until the kernel had a whole plan.");
    FAMILIES.iter().for_each(|family| page.histogram(name, family, &readings.full));
    let name = "kubeproxy_sync_partial_proxy_rules_duration_seconds";
    page.head(name, "histogram", "Time until the kernel had a change of the plan.");
    FAMILIES.iter().for_each(|family| page.histogram(name, family, &readings.partial));

    let name = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
    page.head(name, "gauge", "When the kernel last had all that was known.");
    FAMILIES.iter().for_each(|family| page.value(name, family, unix(readings.last_sync)));
    let name = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds";
    page.head(name, "gauge", "When a change last arrived.");
    FAMILIES.iter().for_each(|family| page.value(name, family, unix(readings.last_queued)));

    let name = "kubeproxy_network_programming_duration_seconds";
    page.head(
        name,
        "histogram",
        "From the change in the cluster that a slice's annotation names to its commit.",
    );
    FAMILIES.iter().for_each(|family| page.histogram(name, family, &readings.network_programming));

    for (what, changes) in [("endpoint", readings.slices), ("service", readings.services)] {
        let pending = format!("kubeproxy_sync_proxy_rules_{what}_changes_pending");
        page.one(&pending, "gauge", "Changes that the kernel doesn't have yet.", changes.pending());
        let total = format!("kubeproxy_sync_proxy_rules_{what}_changes_total");
        page.one(&total, "counter", "Changes that arrived.", changes.arrived);
    }

    let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
    page.head(name, "gauge", "Services with a policy Local and endpoints, but none on this node.");
    let (internal, external) = readings.no_local();
    page.value(name, "traffic_policy=\"internal\"", internal);
    page.value(name, "traffic_policy=\"external\"", external);

    let name = "kubeproxy_sync_proxy_rules_nftables_sync_failures_total";
    page.head(name, "counter", "Plans that the kernel refused.");
    FAMILIES.iter().for_each(|family| page.value(name, family, readings.failures));

    for (what, answers) in [("healthz", &readings.healthz), ("livez", &readings.livez)] {
        let name = format!("kubeproxy_proxy_{what}_total");
        page.head(&name, "counter", "Answers given, by HTTP status.");
        for (code, count) in answers {
            page.value(&name, &format!("code=\"{code}\""), *count);
        }
    }

    let name = "kubeproxy_conntrack_reconciler_sync_duration_seconds";
    page.head(name, "histogram", "Time that looking through the connection table took.");
    page.histogram(name, "", &readings.conntrack);
    let name = "kubeproxy_conntrack_reconciler_deleted_entries_total";
    page.one(name, "counter", "Stale UDP flows forgotten.", readings.flows);
}

fn ours(page: &mut Page, readings: &Readings) {
    let name = "portolan_programming_duration_seconds";
    page.head(name, "histogram", "From the arrival of the oldest change of a commit to the commit.");
    page.histogram(name, "", &readings.arrival);
    let mut total = |name: &str, help: &str, value: &dyn Display| page.one(name, "counter", help, value);
    total("portolan_elements_total", "Set elements added and removed.", &readings.elements);
    total("portolan_batches_total", "Transactions committed.", &readings.batches);
    total("portolan_batch_bytes_total", "Bytes sent to the kernel.", &readings.bytes);
    total("portolan_kernel_seconds_total", "Time spent in the kernel.", &readings.kernel.as_secs_f64());
    total(
        "portolan_encode_seconds_total",
        "Time spent deciding and encoding.",
        &readings.encode.as_secs_f64(),
    );
    total("portolan_repairs_total", "Times that tables somebody changed were put back.", &readings.repairs);
}

fn unix(time: Option<SystemTime>) -> f64 {
    let since = time.and_then(|t| t.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.map_or(0.0, |d: Duration| d.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use portolan_dataplane::Applied;

    use super::*;

    fn busy() -> Meters {
        let meters = Meters::default();
        let applied = Applied { batches: 1, elements: 12, bytes: 900, ..Applied::default() };
        meters.committed(true, Duration::from_millis(3), &applied);
        meters.committed(false, Duration::from_micros(40), &applied);
        meters.done(Some(Duration::from_millis(1)));
        meters.conntrack(Duration::from_micros(20), 3);
        meters.answered(true, 200);
        meters.answered(false, 503);
        meters
    }

    #[test]
    fn the_page_has_the_names_that_dashboards_know() {
        let counters = Counters { from_outside: 7, ..Counters::default() };
        let page = page(&busy(), Some(counters), Process::now());
        for line in [
            "# TYPE kubeproxy_sync_proxy_rules_duration_seconds histogram",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.004\"} 2",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv6\",le=\"+Inf\"} 2",
            "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 2",
            "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
            "kubeproxy_network_programming_duration_seconds_bucket{ip_family=\"IPv4\",le=\"+Inf\"} 0",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
            "kubeproxy_sync_proxy_rules_service_changes_total 0",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"internal\"} 0",
            "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
            "kubeproxy_proxy_livez_total{code=\"503\"} 1",
            "kubeproxy_conntrack_reconciler_deleted_entries_total 3",
            "portolan_elements_total 24",
            "portolan_dropped_packets_total{reason=\"cluster-ip-from-outside\"} 7",
            "portolan_dropped_packets_total{reason=\"missed\"} 0",
        ] {
            assert!(page.lines().any(|l| l == line), "no line {line:?} in\n{page}");
        }
        assert!(page.contains("\nprocess_resident_memory_bytes "), "{page}");
    }

    #[test]
    fn every_sample_comes_after_its_type_and_none_is_told_twice() {
        let page = page(&busy(), Some(Counters::default()), Process::now());
        let (mut named, mut seen) = (String::new(), BTreeSet::new());
        for line in page.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let name = rest.split(' ').next().expect("a name");
                assert!(seen.insert(format!("type {name}")), "{name} is described twice");
                named = name.to_owned();
            } else if !line.starts_with('#') {
                let (sample, value) = line.rsplit_once(' ').expect("a value");
                assert!(sample.starts_with(&named), "{sample} under {named}");
                assert!(value.parse::<f64>().is_ok(), "{line}");
                assert!(seen.insert(sample.to_owned()), "{sample} is told twice");
            }
        }
    }

    #[test]
    fn every_name_on_the_page_is_in_the_docs() {
        let docs = include_str!("../../../docs/reference/agent.md");
        let page = page(&busy(), Some(Counters::default()), Process::now());
        for name in page.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next()) {
            assert!(
                docs.contains(&format!("| `{name}` |")),
                "docs/reference/agent.md lacks a row for {name}"
            );
        }
    }
}
