//! `lab check` on a lab that is well, and on labs of which one part is broken: the row that says so is named.

use super::leftovers::status;
use crate::harness::{Lab, text};

const EXAMPLES: &[&str] = &["--nodes", "3", "-f", "examples"];

/// The rows that failed: type, family, place, and what was seen.
fn failed(output: &str) -> Vec<(String, String, String, String)> {
    let table = &output[output.find("SERVICE ").unwrap_or_else(|| panic!("no table: {output}"))..];
    let header = table.lines().next().expect("a header");
    let at = |name: &str| header.find(name).expect("a column");
    let columns = [at("TYPE"), at("FAMILY"), at("FROM"), at("RESULT"), at("EXPECTED"), at("SEEN")];
    let rows = table.lines().filter(|line| line.contains("   FAIL   "));
    rows.map(|row| {
        let cell =
            |n: usize| row[columns[n]..columns.get(n + 1).copied().unwrap_or(row.len())].trim().to_owned();
        (cell(0), cell(1), cell(2), cell(5))
    })
    .collect()
}

/// Stops the process of a machine, so that it repairs nothing.
fn stop(lab: &Lab, machine: &str) {
    let state = status(&lab.name);
    let process = state["processes"].as_array().and_then(|all| all.iter().find(|p| p["machine"] == machine));
    let pid = process.and_then(|p| p["pid"].as_u64()).expect("a pid").to_string();
    let done = lab.run_at(machine, &["kill", "-STOP", &pid]);
    assert!(done.status.success(), "{}", text(&done));
}

/// Runs a program of this machine that a test can do without.
fn run(lab: &Lab, promise: &str, machine: &str, program: &[&str]) -> bool {
    let output = lab.run_at(machine, program);
    if output.status.code() == Some(127) {
        portolan_sys::trial::skipped(promise, &format!("no program {}", program[0]));
        return false;
    }
    assert!(output.status.success(), "{program:?}: {}", text(&output));
    true
}

#[test]
fn a_lab_that_is_well_passes_on_both_families_and_leaves_nothing_in_the_cluster() {
    let promise = "a lab that is well passes on both families and leaves nothing in the cluster";
    let Some(lab) = Lab::up(promise, "check-well", EXAMPLES) else { return };
    let output = lab.verb("check", &[]);
    let table = text(&output);
    assert!(output.status.success(), "{table}");
    for kind in ["ClusterIP", "NodePort", "LoadBalancer"] {
        for family in ["IPv4", "IPv6"] {
            for from in [
                "pod on the same node",
                "pod on another node",
                "pod reaching itself",
                "node",
                "outside client",
            ] {
                let row = |l: &&str| {
                    [kind, family].iter().all(|w| l.contains(&format!("   {w}   ")))
                        && l.contains(&format!("   {from}  "))
                };
                let row = table.lines().find(|l| row(l) && l.contains("   ok  "));
                assert!(row.is_some(), "{kind} {family} from {from}:\n{table}");
            }
        }
    }
    assert!(table.contains("hostname-service"), "{table}");
}

#[test]
fn policies_and_services_without_endpoints_are_as_expected() {
    let promise = "policies and Services without endpoints are as expected";
    let Some(lab) =
        Lab::up(promise, "check-policy", &[EXAMPLES, &["-f", "tests/lab/policies.yaml"]].concat())
    else {
        return;
    };
    let output = lab.verb("check", &[]);
    let table = text(&output);
    assert!(output.status.success(), "{table}");
    for expected in [
        "refused: no endpoints",
        "nothing: no endpoint on the node",
        "the node's own backends, or nothing",
        "the announcer's own backends",
        "nothing: not in the source ranges",
        "always one backend",
    ] {
        assert!(table.contains(expected), "{expected}:\n{table}");
    }
}

#[test]
fn a_lost_table_fails_the_rows_of_its_node() {
    let promise = "a lost table fails the rows of its node";
    let Some(lab) = Lab::up(promise, "check-table", EXAMPLES) else { return };
    stop(&lab, "node-2");
    if !run(&lab, promise, "node-2", &["nft", "delete", "table", "ip", "portolan"]) {
        return;
    }
    let output = lab.verb("check", &[]);
    let table = text(&output);
    assert_eq!(output.status.code(), Some(1), "{table}");
    let rows = failed(&table);
    for kind in ["ClusterIP", "NodePort"] {
        let row = rows.iter().find(|(k, family, from, _)| k == kind && family == "IPv4" && from == "node");
        let (.., seen) = row.unwrap_or_else(|| panic!("{kind} from the node:\n{table}"));
        assert!(seen.starts_with("node-2: "), "{seen}");
    }
}

#[test]
fn a_lost_route_fails_the_rows_of_its_node() {
    let promise = "a lost route fails the rows of its node";
    let Some(lab) = Lab::up(promise, "check-route", EXAMPLES) else { return };
    let routes = lab.run_at("node-1", &["ip", "-6", "route"]);
    if routes.status.code() == Some(127) {
        portolan_sys::trial::skipped(promise, "no program ip");
        return;
    }
    let routes = text(&routes);
    let route = routes.lines().find_map(|line| line.split_once(" via fd00:80::12 ").map(|(to, _)| to));
    let route = route.unwrap_or_else(|| panic!("no route to the pods of node-2: {routes}")).trim().to_owned();
    let route = route.rsplit(' ').next().expect("a range");
    // Not deleted: the node would put it back.
    let rule = ["ip", "-6", "rule", "add", "pref", "10", "to", route, "unreachable"];
    assert!(run(&lab, promise, "node-1", &rule));
    let output = lab.verb("check", &[]);
    let table = text(&output);
    assert_eq!(output.status.code(), Some(1), "{table}");
    let rows = failed(&table);
    for from in ["pod on another node", "node"] {
        let row = rows.iter().find(|(kind, _, place, _)| kind == "ClusterIP" && place == from);
        let (.., seen) = row.unwrap_or_else(|| panic!("ClusterIP from a {from}:\n{table}"));
        assert!(seen.starts_with("node-1"), "{table}");
    }
    // Answers from pods of node-1 to those of node-2 are lost too; nobody else has a part in it.
    for (_, family, _, seen) in rows {
        assert!(family == "IPv6" && !seen.contains("node-3"), "{table}");
    }
}

#[test]
fn an_address_that_nobody_announces_fails_for_the_client_alone() {
    let promise = "an address that nobody announces fails for the client alone";
    let Some(lab) = Lab::up(promise, "check-arp", EXAMPLES) else { return };
    // What a cut in the nodes' announcements looks like from the local network, without a change on the nodes' side.
    let mute = "table netdev mute { chain leaving { type filter hook egress device eth0 priority 0; \
                arp saddr ip 10.80.0.200-10.80.0.250 drop; }; }";
    for node in ["node-1", "node-2", "node-3"] {
        if !run(&lab, promise, node, &["nft", mute]) {
            return;
        }
    }
    // What the client remembers of an announcer would still do.
    if !run(&lab, promise, "client", &["ip", "neigh", "flush", "all"]) {
        return;
    }
    let output = lab.verb("check", &[]);
    let table = text(&output);
    assert_eq!(output.status.code(), Some(1), "{table}");
    let rows = failed(&table);
    assert!(!rows.is_empty(), "{table}");
    for (kind, family, from, _) in rows {
        assert_eq!((&*kind, &*family, &*from), ("LoadBalancer", "IPv4", "outside client"), "{table}");
    }
}
