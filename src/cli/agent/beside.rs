//! What a shadow says when it is asked once.

use std::time::Duration;

use portolan_agent::beside::Compared;
use tokio::sync::watch;

/// How long both sides have to come to rest.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until what differs stays so, and says it: an error if anything does.
pub async fn once(mut compared: watch::Receiver<Compared>) -> anyhow::Result<()> {
    let settled = compared.wait_for(|compared| compared.at.is_some() && compared.settled);
    match tokio::time::timeout(PATIENCE, settled).await {
        Ok(settled) => drop(settled?),
        Err(_) => {
            anyhow::bail!("--shadow --once: kube-proxy's tables didn't come to rest within {PATIENCE:?}")
        }
    }
    let compared = compared.borrow();
    let Some(mode) = compared.mode else {
        anyhow::bail!(
            "--shadow: kube-proxy has no tables in this network namespace that can be read (nftables or iptables-nft)"
        );
    };
    for difference in &compared.differences {
        println!("{difference}");
    }
    let (all, different) = (compared.frontends, compared.differences.len());
    let same = all - compared.differences.iter().filter(|difference| difference.ours.is_some()).count();
    println!("{same} of {all} frontends as kube-proxy has them ({mode} mode), {different} differences");
    if different > 0 {
        anyhow::bail!("{different} differences");
    }
    Ok(())
}
