//! docs/reference/services.md: what a Service means on a node, and the tests that hold each promise. Generated from here.
//!
//! `PORTOLAN_WRITE_DOCS=1 cargo test --test main services` writes it.

use std::collections::BTreeSet;

use crate::map::{read, root};

/// A promise and the tests that hold it.
struct Row {
    /// What is promised.
    promise: &'static str,
    /// Names of tests.
    tests: &'static [&'static str],
    /// Where kube-proxy does otherwise: a heading of differences.md.
    differs: Option<&'static str>,
}

const fn row(promise: &'static str, tests: &'static [&'static str]) -> Row {
    Row { promise, tests, differs: None }
}

const fn other(promise: &'static str, tests: &'static [&'static str], differs: &'static str) -> Row {
    Row { promise, tests, differs: Some(differs) }
}

/// Random flows, judged by the plan, by our table's packets and by the real kube-proxy's.
const WITNESS: &str = "a_flow_goes_where_the_plan_says";
const PEER: &str = "kube_proxy_sends_the_same_flows_to_the_same_places";

const CHAPTERS: &[(&str, &[Row])] = &[
    (
        "Which Services a node forwards",
        &[
            row(
                "Services with the label `service.kubernetes.io/service-proxy-name` are another proxy's, also when the label comes or goes while they live; slices with `service.kubernetes.io/headless` are not watched.",
                &["services_of_another_proxy_are_let_alone", WITNESS, PEER],
            ),
            row(
                "Headless Services and those of type ExternalName have nothing that a node forwards.",
                &[
                    "headless_services_and_aliases_are_none_of_a_nodes_business",
                    "a_service_that_turns_headless_is_no_longer_forwarded",
                ],
            ),
            row(
                "Nothing is programmed before Services, slices and the node were all listed: a restart never takes rules away that are only not yet known again.",
                &[
                    "the_kernel_is_told_nothing_before_everything_is_listed",
                    "forwarding_stays_in_place_after_shutdown_and_a_restart_ends_in_the_same_plan",
                ],
            ),
            row(
                "A malformed Service is told to its owner and stops no other.",
                &[
                    "a_malformed_service_is_told_and_does_not_stop_the_others",
                    "a_bad_service_does_not_stop_the_others",
                ],
            ),
        ],
    ),
    (
        "Which endpoints take a connection",
        &[
            row(
                "The slices of a Service are one set; of an endpoint that is in two slices the entry that isn't terminating counts; it is local if its node is this node.",
                &[
                    "of_an_endpoint_in_two_slices_the_entry_that_is_not_terminating_wins_in_either_order",
                    "the_slices_of_a_service_are_one_set_and_a_slice_may_move_to_another_service",
                    WITNESS,
                    PEER,
                ],
            ),
            row(
                "Ready endpoints; where none is, those that are terminating and still serve; for the cluster's set and the local set each by itself (KEP-1669).",
                &[
                    "usable_is_ready_and_otherwise_serving_while_terminating_for_each_set_by_itself",
                    WITNESS,
                    PEER,
                ],
            ),
            row(
                "Hints for nodes, then for zones, count only if every ready endpoint has them and one is meant for here (KEP-2433, KEP-3015); never for the local set, nor among terminating endpoints.",
                &[
                    "hints_count_only_if_all_ready_endpoints_have_them_and_one_is_meant_for_here",
                    "hints_never_apply_to_the_local_set_nor_to_terminating_endpoints",
                    WITNESS,
                    PEER,
                ],
            ),
            row(
                "A named target port may be another number at each endpoint.",
                &["a_named_target_port_may_differ_from_endpoint_to_endpoint", WITNESS, PEER],
            ),
            row(
                "Connections are spread evenly at random, whatever the number of endpoints.",
                &["all_backends_are_reached_also_when_their_number_is_no_power_of_two", WITNESS],
            ),
            row(
                "While endpoints come and go at full rate no new connection misses.",
                &[
                    "no_new_connection_misses_while_backends_come_and_go_at_full_rate",
                    "any_history_reads_back_as_the_last_plan_and_no_packet_misses",
                ],
            ),
            row(
                "With session affinity ClientIP a source keeps its endpoint for each port of the Service, through all of its addresses; use renews it; each Service has its own timeout; it may be switched while it runs; a restart of the agent forgets nothing; only clients of an endpoint that is gone move.",
                &[
                    "a_client_stays_with_its_backend_for_as_long_as_there_is_one",
                    "each_services_own_timeout_counts_for_its_clients_and_use_renews_it",
                    "affinity_belongs_to_the_port_and_so_to_all_its_addresses",
                    "affinity_has_its_default_timeout",
                    WITNESS,
                    PEER,
                ],
            ),
        ],
    ),
    (
        "Policies, refusals and sources",
        &[
            row(
                "A policy Local with endpoints elsewhere and none here drops; no endpoint at all refuses (RST, or port unreachable), from everywhere and for every kind of address.",
                &[
                    "a_local_policy_drops_when_endpoints_are_elsewhere_and_rejects_when_there_are_none",
                    "no_endpoint_is_a_refusal_from_everywhere_for_every_kind_of_address",
                    "what_leads_nowhere_is_refused_or_dropped",
                    WITNESS,
                    PEER,
                ],
            ),
            row(
                "internalTrafficPolicy Local keeps to endpoints of this node.",
                &["internal_policy_local_keeps_to_endpoints_of_this_node", WITNESS, PEER],
            ),
            row(
                "externalTrafficPolicy Local keeps the client's address; what starts on the node or in its pods may use every endpoint, the node's own connections masqueraded.",
                &[
                    "external_policy_local_keeps_the_source_from_outside_and_lets_inside_use_the_whole_cluster",
                    "the_local_policy_keeps_the_source",
                    WITNESS,
                    PEER,
                ],
            ),
            row(
                "externalTrafficPolicy Cluster masquerades; a pod keeps its address to a ClusterIP; masqueradeAll hides pods too. No packet mark is used: the connection's original destination decides.",
                &[
                    "external_policy_cluster_masquerades_everyone",
                    "masquerade_all_hides_pods_too",
                    "every_kind_of_frontend_answers_from_everywhere",
                    WITNESS,
                    PEER,
                ],
            ),
            row(
                "A pod that reaches itself through its Service sees the node's address.",
                &[
                    "a_pod_that_reaches_itself_sees_the_node_as_source",
                    "a_pod_reaches_itself_through_its_service",
                    WITNESS,
                    PEER,
                ],
            ),
            other(
                "A ClusterIP answers inside; whether it does from outside is the owner's choice (`clusterIPFromOutside`).",
                &[
                    "a_cluster_ip_is_closed_to_outside_unless_told_otherwise_and_then_masqueraded",
                    "a_cluster_ip_answers_no_one_outside_and_counts_them",
                    "a_node_that_registers_is_never_open_to_outsiders_for_want_of_its_pods_ranges",
                    WITNESS,
                    PEER,
                ],
                "ClusterIPs can be closed to outside",
            ),
            row(
                "An undefined port of a ClusterIP is refused, an address of the ranges that no Service has is dropped.",
                &[
                    "an_unallocated_cluster_ip_is_dropped_and_an_undefined_port_of_an_allocated_one_rejected",
                    WITNESS,
                    PEER,
                ],
            ),
            other(
                "A port that a load balancer's or external address doesn't have is refused where the packet would go back where it came from.",
                &["a_port_that_a_balancer_does_not_have_is_refused_where_it_would_go_in_circles"],
                "No packet is sent back where it came from",
            ),
            row(
                "Packets that belong to no connection leave no pod, and a ClusterIP neither forwards nor answers them.",
                &["a_packet_that_is_invalid_leaves_no_pod_and_gets_no_answer_from_a_cluster_ip"],
            ),
        ],
    ),
    (
        "Load-balancer and external addresses",
        &[
            row(
                "An ingress address of ipMode VIP is captured, of ipMode Proxy it is left to the load balancer (KEP-1860).",
                &[
                    "an_address_in_mode_proxy_is_left_to_the_load_balancer",
                    "a_load_balancers_addresses_count_only_while_the_service_has_that_type",
                    WITNESS,
                    PEER,
                ],
            ),
            row(
                "Source ranges hold on load-balancer addresses, never on NodePorts; the field goes before the annotation; a node that is let in may come from the balancer's own address.",
                &[
                    "source_ranges_hold_on_load_balancer_addresses_only",
                    "source_ranges_close_what_they_do_not_name",
                    "source_ranges_come_from_the_field_then_from_the_annotation_and_close_when_malformed",
                    "a_node_that_is_let_in_may_come_from_the_balancers_own_address",
                    WITNESS,
                    PEER,
                ],
            ),
            other(
                "Ranges of one family close the other; malformed ones let nobody in.",
                &[
                    "a_family_without_a_source_range_is_closed_and_says_so",
                    "malformed_source_ranges_let_nobody_in",
                    WITNESS,
                ],
                "A family without a source range is closed",
            ),
            other(
                "An address and port has one owner: a ClusterIP is nobody else's, then the older Service. The other is told.",
                &[
                    "the_older_service_keeps_a_frontend_and_the_younger_gets_a_finding",
                    "a_cluster_ip_is_not_taken_over_by_an_older_services_external_address_at_any_port",
                    "a_node_port_goes_before_an_external_address_of_the_node_at_the_same_port",
                    "when_the_owner_goes_the_next_takes_over_in_the_same_change",
                    "an_address_of_its_own_comes_before_a_node_port",
                ],
                "An external address has one owner",
            ),
            other(
                "External IPs are captured where the node's owner allows it; never cluster IPs, pods' addresses, loopback or multicast.",
                &[
                    "external_ips_are_captured_where_the_nodes_owner_allows_them",
                    "an_external_address_in_the_cluster_ips_range_is_refused_with_a_finding",
                    "addresses_that_nobody_can_reach_or_of_another_family_are_refused_with_a_finding",
                ],
                "External addresses that are not to be given",
            ),
        ],
    ),
    (
        "NodePorts",
        &[
            row(
                "They answer on the node's primary addresses, on ranges, on all, as told; on no other address.",
                &[
                    "node_ports_answer_on_the_primary_address_unless_told_otherwise",
                    "a_node_port_is_closed_on_addresses_that_were_not_chosen",
                    "a_dual_stack_service_has_its_node_port_in_both_families",
                    WITNESS,
                    PEER,
                ],
            ),
            other(
                "On localhost where asked: 127.0.0.1 and ::1, TCP, UDP and SCTP, in the kernel.",
                &["loopback_is_for_the_node_itself", WITNESS],
                "NodePorts on localhost",
            ),
            row(
                "Nobody on the wire reaches what listens on a loopback address (CVE-2020-8558).",
                &[
                    "nobody_on_the_wire_reaches_a_node_port_of_the_loopback_address",
                    "loopback_is_for_the_node_itself",
                ],
            ),
        ],
    ),
    (
        "Protocols and flows that last",
        &[
            row(
                "TCP, UDP and SCTP, each its own frontend.",
                &["the_protocol_is_part_of_a_frontend", WITNESS, PEER],
            ),
            other(
                "A UDP flow whose endpoint, Service or node port is gone is decided anew at once. A flow to an endpoint that still serves goes on. One to an endpoint that is there but no longer serves is decided anew at once if it is idle, and within some two seconds if it is in use, so that an answer that is owed comes through. Nobody else's flow is touched.",
                &[
                    "a_udp_flow_goes_on_while_its_backend_serves_and_is_stale_after",
                    "udp_flows_to_a_removed_backend_are_forgotten_and_no_others",
                    "a_backend_that_is_removed_while_it_works_on_an_answer_gets_it_through",
                    "a_udp_flow_follows_when_its_endpoint_is_replaced_and_forwarding_outlives_the_agent",
                    "a_udp_flow_ends_when_its_service_went_while_no_agent_ran",
                    "udp_flows_of_an_endpoint_that_is_gone_are_forgotten",
                ],
                "UDP flows of Services that are gone",
            ),
            row(
                "1,000 TCP streams and 200 UDP flows live through a restart, `kill -9`, an upgrade and a flush of the tables: none reset, none moved.",
                &[
                    "no_connection_is_reset_or_moved_when_the_agent_is_restarted_killed_upgraded_or_its_tables_are_flushed",
                ],
            ),
            row(
                "A node passes from kube-proxy (nftables or iptables mode) to the agent and back: none of 1,000 TCP streams and 200 UDP flows is reset or moved.",
                &["a_node_passes_from_kube_proxy_to_the_agent_and_back_with_all_its_connections"],
            ),
        ],
    ),
    (
        "The node agent",
        &[
            row(
                "healthCheckNodePort: 200 while this node has ready endpoints and follows, 503 otherwise, also when only terminating ones are left; in kube-proxy's form; a port that is taken is told at the Service.",
                &[
                    "a_health_check_counts_ready_endpoints_of_this_node_each_address_once",
                    "a_health_check_port_answers_for_ready_endpoints_and_not_for_those_that_end",
                    "the_answer_has_the_form_that_load_balancers_know",
                    "a_port_that_is_taken_is_told_of_at_the_service",
                ],
            ),
            row(
                "`:10256/healthz` and `/livez` in kube-proxy's form: unhealthy while a change waits too long; healthz also for a node about to be deleted (KEP-3836).",
                &[
                    "healthz_has_the_form_that_load_balancers_know",
                    "healthz_follows_the_node_object_and_livez_does_not",
                    "a_change_that_waits_for_too_long_is_unhealthy_even_if_nobody_took_it",
                ],
            ),
            row(
                "`127.0.0.1:10249`: `/metrics`, `/proxyMode`, `/configz`, `/healthz`.",
                &[
                    "the_ports_answer_as_those_of_kube_proxy",
                    "the_page_has_the_names_that_dashboards_know",
                    "the_configuration_in_effect_is_shown",
                ],
            ),
            row(
                "Node events: `Starting`, and a port that can't be opened.",
                &["the_node_is_told_of_a_start_and_of_a_port_that_is_taken_while_forwarding_goes_on"],
            ),
            row(
                "A KubeProxyConfiguration is accepted as it is; what has no effect is named.",
                &[
                    "the_file_of_kubeadm_is_accepted_with_one_warning_of_its_mode",
                    "unknown_fields_are_each_named_and_ignored",
                    "what_is_wrong_is_named_with_its_remedy_and_all_at_once",
                    "the_agent_alone_takes_kube_proxys_file_and_its_forwarding_stays_until_cleanup",
                ],
            ),
            other(
                "Connection tracking is set as asked, and only then.",
                &["connection_tracking_is_set_as_asked", "connection_tracking_stays_as_it_is_unless_asked"],
                "Connection tracking stays as the machine has it",
            ),
            row(
                "A change of the node's labels or addresses plans everything anew, without a restart.",
                &[
                    "any_history_ends_in_the_plan_of_its_final_state",
                    "restarts_replays_and_missed_events_all_end_in_the_same_state",
                ],
            ),
            row(
                "Rules stay when the agent ends; `--cleanup` removes them.",
                &["the_agent_alone_takes_kube_proxys_file_and_its_forwarding_stays_until_cleanup"],
            ),
            row(
                "What others do to our tables is put right at once, counted and told with who did it; what they do in their own is left alone. A second agent on a node is refused.",
                &[
                    "whatever_somebody_does_to_the_tables_is_put_right_at_once_and_told_with_who_did_it",
                    "what_others_do_in_tables_of_their_own_is_nothing_to_the_agent",
                    "a_second_agent_is_refused_and_told_of_the_first",
                ],
            ),
            row(
                "The tables are the agent's alone, `portolan` in families ip and ip6; nft prints them and reads them again; a user namespace is enough.",
                &["nft_prints_the_tables_and_reads_them_again", "a_user_namespace_is_enough"],
            ),
        ],
    ),
];

/// The file of each test of the tree, by name.
fn all_tests() -> std::collections::BTreeMap<String, String> {
    let mut found = std::collections::BTreeMap::new();
    let mut folders = vec![root().join("tests"), root().join("crates"), root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source");
                let shown = path.strip_prefix(root()).expect("below the root").display().to_string();
                let mut marked = false;
                for line in text.lines().map(str::trim) {
                    if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                        marked = true;
                    } else if let Some(rest) =
                        line.split("fn ").nth(1).filter(|_| marked && !line.starts_with("//"))
                    {
                        let name = rest.split(['(', '<']).next().unwrap_or_default();
                        found.insert(name.to_owned(), shown.clone());
                        marked = false;
                    }
                }
            }
        }
    }
    found
}

/// A heading's anchor, as forges make it.
fn anchor(heading: &str) -> String {
    heading
        .to_lowercase()
        .chars()
        .filter_map(|c| if c == ' ' { Some('-') } else { (c.is_alphanumeric() || c == '-').then_some(c) })
        .collect()
}

fn document() -> String {
    let tests = all_tests();
    let mut text = String::from(
        "# What a Service means on a node\n\nEach promise, the tests that hold it, and where kube-proxy does otherwise \
         ([differences](differences.md)).\n`a_flow_goes_where_the_plan_says` draws clusters and flows at random and compares the \
         plan with packets through the tables;\n`kube_proxy_sends_the_same_flows_to_the_same_places` does the same with the real \
         kube-proxy's.\n\nGenerated by `PORTOLAN_WRITE_DOCS=1 cargo test --test main services`.\n",
    );
    for (chapter, rows) in CHAPTERS {
        text += &format!("\n## {chapter}\n\n| promise | held by |\n|---|---|\n");
        for row in *rows {
            let names = row.tests.iter().map(|name| {
                let file =
                    tests.get(*name).unwrap_or_else(|| panic!("no test is named {name}: {}", row.promise));
                format!("[`{name}`](../../{file})")
            });
            let differs = row.differs.map_or_else(String::new, |heading| {
                format!(" [kube-proxy does otherwise](differences.md#{}).", anchor(heading))
            });
            text += &format!("| {}{differs} | {} |\n", row.promise, names.collect::<Vec<_>>().join("<br>"));
        }
    }
    text
}

#[test]
fn the_reference_of_services_is_what_the_tests_hold() {
    let path = root().join("docs/reference/services.md");
    let wanted = document();
    if std::env::var_os("PORTOLAN_WRITE_DOCS").is_some() {
        std::fs::write(&path, &wanted).expect("written");
    }
    let is = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        is == wanted,
        "docs/reference/services.md is old: PORTOLAN_WRITE_DOCS=1 cargo test --test main services"
    );
}

#[test]
fn every_difference_from_kube_proxy_is_documented_and_none_else() {
    let text = read("docs/reference/differences.md");
    let documented: BTreeSet<&str> = text.lines().filter_map(|l| l.strip_prefix("## ")).collect();
    let rows = CHAPTERS.iter().flat_map(|(_, rows)| *rows);
    let of_rows: BTreeSet<&str> = rows.filter_map(|row| row.differs).collect();
    assert_eq!(of_rows, documented, "a row's difference and a heading of docs/reference/differences.md");
    // What the run beside kube-proxy lets pass has a heading too.
    let witness = read("crates/agent/tests/witness/kube_proxy.rs");
    let list = witness.split("pub const DIFFERENCES").next().expect("the list's beginning");
    let excused = list.lines().filter_map(|l| l.strip_prefix("const ")?.split('"').nth(1));
    let lower: BTreeSet<String> = documented.iter().map(|h| h.to_lowercase()).collect();
    let unknown: Vec<&str> =
        excused.filter(|e| !e.starts_with("kube-proxy") && !lower.contains(&e.to_lowercase())).collect();
    assert!(unknown.is_empty(), "excused and not documented: {unknown:?}");
}
