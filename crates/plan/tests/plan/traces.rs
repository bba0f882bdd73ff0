//! A verdict names what decided it.

use portolan_plan::finding::Object;
use portolan_plan::trace::{Origin, Verdict};
use portolan_plan::view::*;

use crate::fixture::*;

fn decided(verdict: &Verdict) -> (Object, &str) {
    let last = verdict.because.last().unwrap();
    (last.object.clone(), &last.field)
}

#[test]
fn each_verdict_names_the_object_and_field_behind_it() {
    let web_object = || Object::Service(web().name);
    let local = plan(
        ServiceView { external_policy: TrafficPolicy::Local, ..web() },
        endpoints(vec![endpoint(POD_THERE, "there")]),
    );
    assert_eq!(
        decided(&trace(&local, outside(), BALANCER, 80)),
        (web_object(), "spec.externalTrafficPolicy")
    );

    let ranged = ServiceView { source_ranges: Some(vec!["10.0.0.0/8".parse().unwrap()]), ..web() };
    let ranged = plan(ranged, here_and_there());
    assert_eq!(
        decided(&trace(&ranged, outside(), BALANCER, 80)),
        (web_object(), "spec.loadBalancerSourceRanges")
    );

    let empty = plan(web(), EndpointsView::default());
    assert_eq!(
        decided(&trace(&empty, pod(), VIP, 80)),
        (Object::Endpoints(web().name), "endpoints[].conditions")
    );
    assert_eq!(decided(&trace(&empty, pod(), VIP, 81)), (web_object(), "spec.ports"));
    assert_eq!(decided(&trace(&empty, pod(), "10.96.0.99", 80)), (Object::Config, "serviceCIDRs"));
    assert_eq!(decided(&trace(&empty, outside(), VIP, 80)), (Object::Config, "clusterIPFromOutside"));
    assert_eq!(decided(&trace(&empty, outside(), "192.0.2.99", 80)), (Object::Config, "services"));
}

#[test]
fn a_verdict_reads_as_sentences() {
    let plan = plan(web(), endpoints(vec![endpoint(POD_HERE, "here")]));
    assert_eq!(
        trace(&plan, Origin::Outside(ip(CLIENT)), NODE, NODE_PORT).to_string(),
        "forward to 10.1.0.5:8080; with this node's address as source\n  \
         service default/web: spec.ports[].nodePort: 192.0.2.10 is an address of this node, IPv4 node port 30163/TCP\n  \
         service default/web: spec.externalTrafficPolicy: usable endpoints anywhere\n  \
         service default/web: spec.externalTrafficPolicy: Cluster: the source becomes the node's"
    );
}
