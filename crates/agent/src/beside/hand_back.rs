//! From us to kube-proxy: once it runs and carries everything that we do, our tables go.

use std::time::Duration;

use portolan_dataplane::{Engine, Options};
use tokio::sync::watch;

use super::running;
use super::shadow::Compared;
use crate::lock::Lock;
use crate::servers::{Opened, Servers};

/// How often kube-proxy is looked for.
const EVERY: Duration = Duration::from_secs(1);
/// How many frontends that it lacks are named.
const NAMED: usize = 3;

/// Why our tables stay for now; none if they may go.
fn wait_for(sign: Option<&str>, compared: &Compared) -> Option<String> {
    let Some(_) = sign else {
        return Some("kube-proxy doesn't run on this node; start it".into());
    };
    if compared.mode.is_none() {
        return Some("kube-proxy runs, and has no tables yet".into());
    }
    if compared.missing.is_empty() {
        return None;
    }
    let named: Vec<_> = compared.missing.iter().take(NAMED).map(ToString::to_string).collect();
    Some(format!(
        "kube-proxy lacks {} of {} frontends: {}",
        compared.missing.len(),
        compared.frontends,
        named.join("; ")
    ))
}

/// Waits for kube-proxy and removes our tables. `compared` is what a shadow sees; it has to go on meanwhile.
pub async fn run(
    options: Options,
    servers: Servers,
    node: &str,
    mut compared: watch::Receiver<Compared>,
) -> anyhow::Result<()> {
    // An agent that runs would put all of it back.
    let _lock = Lock::take(&options.table, node).await?;
    compared.wait_for(|compared| compared.at.is_some()).await?;
    let mut said = None;
    loop {
        let servers = servers.clone();
        let sign = tokio::task::spawn_blocking(move || running::sign(&servers, &Opened::default())).await?;
        let why = wait_for(sign.as_deref(), &compared.borrow_and_update());
        let Some(why) = why else { break };
        if said.as_ref() != Some(&why) {
            tracing::info!("waiting: {why}");
            said = Some(why);
        }
        // What it has is looked at again by itself; that it runs is not.
        let _ = tokio::time::timeout(EVERY, compared.changed()).await;
    }
    remove(options)?;
    tracing::info!("kube-proxy carries this node: the agent's tables are removed");
    Ok(())
}

/// Removes all that an agent leaves in the kernel of the calling thread's network namespace.
pub fn remove(options: Options) -> anyhow::Result<()> {
    use anyhow::Context as _;
    Engine::open(options)?.remove().context("removing the tables")?;
    crate::localhost::remove().context("removing the routes to ::1")?;
    // Others may rely on it by now, and without the tables nothing guards what listens on 127.0.0.1.
    let setting = "net/ipv4/conf/all/route_localnet";
    if std::fs::read_to_string(format!("/proc/sys/{setting}")).is_ok_and(|on| on.trim() == "1") {
        let name = setting.replace('/', ".");
        tracing::warn!(
            "{name} is 1: neighbours may reach what listens on 127.0.0.1; if nothing else needs it, run `sysctl -w {name}=0`"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use portolan_plan::model::{Family, Frontend, Protocol};

    use super::super::compare::Difference;
    use super::super::read::Mode;
    use super::super::trace::Fate;
    use super::*;

    #[test]
    fn the_tables_stay_until_kube_proxy_runs_and_has_every_frontend() {
        let mut compared = Compared { frontends: 2, ..Compared::default() };
        assert!(wait_for(None, &compared).is_some_and(|why| why.contains("doesn't run")));
        assert!(wait_for(Some("it runs"), &compared).is_some_and(|why| why.contains("no tables yet")));
        compared.mode = Some(Mode::Iptables);
        // What it left long ago is no kube-proxy.
        assert!(wait_for(None, &compared).is_some());
        let frontend = Frontend::NodePort { family: Family::V4, protocol: Protocol::Tcp, port: 30163 };
        let missing = Difference { frontend, service: None, ours: Some(Fate::default()), theirs: None };
        compared.missing = vec![missing];
        let why = wait_for(Some("it runs"), &compared).expect("a reason");
        assert!(why.starts_with("kube-proxy lacks 1 of 2 frontends: node port 30163/TCP"), "{why}");
        compared.missing.clear();
        assert_eq!(wait_for(Some("it runs"), &compared), None);
    }
}
