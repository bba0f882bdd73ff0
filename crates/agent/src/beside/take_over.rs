//! From kube-proxy to us: once our tables carry the node and it has ended, what it left in the kernel goes.

use std::time::Duration;

use portolan_sys::nft::Nftables;
use tokio::sync::watch;
use tokio::time::Instant;

use super::read::{self, Mode};
use super::running;
use crate::forward::Status;
use crate::servers::{Opened, Servers};

/// How often its end is looked for while its tables are there.
const SOON: Duration = Duration::from_secs(1);
/// How often its tables are looked for while they aren't.
const LATER: Duration = Duration::from_secs(5);
/// Tables that are back so soon were put back by somebody who runs, even if nobody sees it.
const BACK_SOON: Duration = Duration::from_secs(30);
/// How long they are left alone then.
const TRUCE: Duration = Duration::from_secs(60);

/// What is to be done about kube-proxy's tables.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Look again after so long.
    Wait(Duration),
    /// Say that it is still there, and why that is known.
    WaitForIt(String),
    /// Somebody puts its tables back whom we don't see.
    Truce,
    Remove,
}

/// Decides; `removed` is how long ago its tables were removed last.
fn step(mode: Option<Mode>, sign: Option<String>, removed: Option<Duration>) -> Step {
    match (mode, sign) {
        (None, _) => Step::Wait(LATER),
        (Some(_), Some(sign)) => Step::WaitForIt(sign),
        (Some(_), None) if removed.is_some_and(|ago| ago < BACK_SOON) => Step::Truce,
        (Some(_), None) => Step::Remove,
    }
}

/// Removes what kube-proxy left, whenever it has ended and our tables are in place; for ever. The socket is of the network
/// namespace that is meant.
pub(crate) async fn run(
    nft: Nftables,
    servers: Servers,
    mut status: watch::Receiver<Status>,
    opened: watch::Receiver<Opened>,
) {
    if status.wait_for(|status| status.synced).await.is_err() {
        return;
    }
    let (mut nft, mut said, mut removed) = (nft, false, None::<Instant>);
    loop {
        let (servers, opened) = (servers.clone(), opened.borrow().clone());
        let looked = tokio::task::spawn_blocking(move || {
            let mode = read::present(&mut nft);
            let sign = match mode {
                Ok(Some(_)) => running::sign(&servers, &opened),
                _ => None,
            };
            (nft, mode, sign)
        });
        let Ok((socket, mode, sign)) = looked.await else { return };
        nft = socket;
        let mode = match mode {
            Ok(mode) => mode,
            Err(error) => {
                tracing::warn!(%error, "kube-proxy's tables can't be looked for");
                None
            }
        };
        // A failure of ours is no time to take anything away.
        if !status.borrow().synced || status.borrow().failures > 0 {
            tokio::time::sleep(SOON).await;
            continue;
        }
        let pause = match step(mode, sign, removed.map(|at| at.elapsed())) {
            Step::Wait(pause) => {
                said = false;
                pause
            }
            Step::WaitForIt(sign) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::info!(
                        "kube-proxy still runs ({sign}): new connections go by our tables already; stop it, and its tables go"
                    );
                }
                SOON
            }
            Step::Truce => {
                tracing::warn!(
                    "somebody puts kube-proxy's tables back, and can't be seen from here: stop kube-proxy on this node"
                );
                TRUCE
            }
            Step::Remove => {
                let done = tokio::task::spawn_blocking(move || {
                    let done = read::remove(&mut nft);
                    (nft, done)
                });
                let Ok((socket, done)) = done.await else { return };
                nft = socket;
                match done {
                    Ok(()) => {
                        let mode = mode.map_or_else(String::new, |mode| mode.to_string());
                        tracing::info!(
                            mode,
                            "kube-proxy has ended, and what it left in the kernel is removed"
                        );
                        removed = Some(Instant::now());
                    }
                    Err(error) => tracing::warn!(%error, "kube-proxy's tables can't be removed; again soon"),
                }
                SOON
            }
        };
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_tables_go_when_it_has_ended_and_not_before() {
        let mode = Some(Mode::Nftables);
        let sign = || Some("process 7 is kube-proxy".to_owned());
        assert_eq!(step(None, sign(), None), Step::Wait(LATER));
        assert_eq!(step(mode, sign(), None), Step::WaitForIt("process 7 is kube-proxy".into()));
        assert_eq!(step(mode, None, None), Step::Remove);
        assert_eq!(step(mode, None, Some(Duration::from_secs(3600))), Step::Remove);
    }

    #[test]
    fn nobody_fights_over_tables_that_somebody_unseen_puts_back() {
        assert_eq!(step(Some(Mode::Iptables), None, Some(Duration::from_secs(2))), Step::Truce);
        // After a truce it is tried again.
        assert_eq!(step(Some(Mode::Iptables), None, Some(TRUCE)), Step::Remove);
    }
}
