//! Which NodePorts there are to publish, as the API shows them.

use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use kube::Api;

use super::cluster::{self, Objects};
use super::publish::Wanted;
use super::topology::{IpFamily, Publish, Transport};

/// Reports the NodePorts whenever they change, until nobody wants to know.
pub async fn follow(kubeconfig: &str, report: impl Fn(Vec<Wanted>) -> bool) {
    let client = loop {
        match cluster::connect(kubeconfig).await {
            Ok(client) => break client,
            Err(error) => {
                tracing::error!("{error:#}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    };
    let mut last = None;
    cluster::until(Api::<Service>::all(client), |services| {
        let wanted = of(services);
        if last.as_ref() == Some(&wanted) {
            return None;
        }
        last = Some(wanted.clone());
        (!report(wanted)).then_some(())
    })
    .await;
}

/// The NodePorts of all Services, each on the same number here.
fn of(services: &Objects<Service>) -> Vec<Wanted> {
    let mut all = Vec::new();
    for (name, service) in services {
        let Some(spec) = &service.spec else { continue };
        let families = families(spec.ip_families.as_deref().unwrap_or_default());
        for port in spec.ports.iter().flatten() {
            let Some(number) = port.node_port.and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0) else { continue };
            let protocol = match port.protocol.as_deref() {
                None | Some("TCP") => Transport::Tcp,
                Some("UDP") => Transport::Udp,
                Some(_) => continue,
            };
            all.push(Wanted {
                publish: Publish { host_port: number, port: number, protocol },
                service: Some(name.clone()),
                families: families.clone(),
            });
        }
    }
    all
}

/// A Service's families, in its order.
pub fn families(words: &[String]) -> Vec<IpFamily> {
    words.iter().filter_map(|word| word.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_port_of_each_protocol_is_wanted_under_its_own_number() {
        let service: Service = serde_json::from_value(serde_json::json!({
            "metadata": {"namespace": "default", "name": "web"},
            "spec": {"ipFamilies": ["IPv6", "IPv4"], "ports": [
                {"port": 80, "nodePort": 30080},
                {"port": 53, "nodePort": 30053, "protocol": "UDP"},
                {"port": 9, "nodePort": 30009, "protocol": "SCTP"},
                {"port": 81},
            ]},
        }))
        .expect("a Service");
        let wanted = of(&Objects::from([("default/web".to_owned(), service)]));
        let ports: Vec<_> = wanted.iter().map(|w| (w.publish.host_port, w.publish.protocol)).collect();
        assert_eq!(ports, [(30080, Transport::Tcp), (30053, Transport::Udp)]);
        assert_eq!(wanted[0].families, [IpFamily::IPv6, IpFamily::IPv4]);
        assert_eq!(wanted[0].service.as_deref(), Some("default/web"));
    }
}
