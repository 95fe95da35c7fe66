//! Leases through connections that break.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use p9::Tree;
use p9::client::{Client, Clock, Options};
use p9::server::SessionLimits;
use p9::tree::LeaseKind;
use tokio::time::timeout;

use crate::net::{Net, PATIENCE, who};
use crate::ram::Ram;

#[tokio::test(start_paused = true)]
async fn a_lease_outlives_its_connection_and_a_break_is_told_before_what_was_asked_later() {
    let ram = Ram::root();
    let net = Net::new(ram.clone());
    let (_client, root) = net.client().await;
    let (sender, mut told) = tokio::sync::mpsc::unbounded_channel();
    let lease = root.lease(LeaseKind::Attr, Arc::new(move |keep| sender.send(keep).unwrap_or(()))).await.unwrap();
    net.down(true);
    let asked = root.attr();
    let breaks = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(ram.leases(), 1, "the session has it still");
        ram.break_leases(LeaseKind::None);
        net.down(false);
    };
    let (attr, ()) = timeout(PATIENCE, async { tokio::join!(asked, breaks) }).await.unwrap();
    attr.unwrap();
    assert_eq!((net.dialled(), told.try_recv()), (2, Ok(LeaseKind::None)));
    drop(lease);
    root.attr().await.unwrap();
    assert_eq!(ram.leases(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_lease_lasts_for_as_long_as_the_server_says() {
    let ram = Ram::root();
    let limits = SessionLimits { lease: Duration::from_secs(2), ..SessionLimits::default() };
    let net = Net::with(ram, limits, |_| [u64::MAX; 2]);
    let hand = Arc::new(AtomicU64::new(1000));
    let seen = hand.clone();
    let clock = Clock::new(move || Duration::from_secs(seen.load(Ordering::SeqCst)));
    let options = Options { clock, ..Options::default() };
    let client = Client::resuming(net.connect(who("SHA256:me")), options, net.resume()).await.unwrap();
    let root = client.attach(&p9::Who::owner(), b"").await.unwrap();
    let lease = root.lease(LeaseKind::Attr, Arc::new(|_| {})).await.unwrap().unwrap();
    hand.fetch_add(1, Ordering::SeqCst);
    assert!(lease.holds());
    hand.fetch_add(1, Ordering::SeqCst);
    assert!(!lease.holds());
}
