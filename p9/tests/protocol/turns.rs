//! The parts of a connection have their turns in one task, which is woken by its peer alone: each time it woke itself,
//! the runtime would have another thread take it up.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};

use futures_util::FutureExt;
use p9::Who;
use p9::server::{Limits, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::peer::encode;
use crate::ram::Ram;

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn what_is_answered_on_the_spot_wakes_nobody() {
    let (mut near, far) = tokio::io::duplex(64 << 10);
    let mut served = pin!(serve(far, Arc::new(Ram::root()), Arc::new(Who::owner()), Limits::default()));
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    let mut poll = || served.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(poll().is_pending());
    let looks = (0..5).map(|tag| format!("{tag} Tgetattr fid=0 request_mask=2047"));
    let begin = ["65535 Tversion msize=8192 version=9P2000.L", "1 Tattach fid=0 afid=~ uname=me aname= n_uname=~"];
    for message in begin.map(String::from).into_iter().chain(looks) {
        let before = woken.0.load(Ordering::SeqCst);
        near.write_all(&encode(&message)).await.unwrap();
        assert!(poll().is_pending());
        assert!(near.read(&mut [0; 1000]).now_or_never().unwrap().unwrap() > 0, "{message}");
        assert_eq!(woken.0.load(Ordering::SeqCst) - before, 1, "{message}");
    }
}
