//! A file that is opened at once, and whose reads and writes wait for ever: until they are flushed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use p9::{NodeRef, Reply, Stream, Written, synth};
use tokio::sync::Notify;

/// Such files, and how many requests wait in them. Clones are the same.
#[derive(Clone, Default)]
pub struct Parked {
    count: Arc<AtomicUsize>,
    changed: Arc<Notify>,
}

impl Parked {
    /// How many requests wait.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// Told when one begins to wait.
    pub fn changed(&self) -> Arc<Notify> {
        self.changed.clone()
    }

    /// The file.
    pub fn node(&self) -> NodeRef {
        let parked = self.clone();
        synth::stream(0o666, move |_| Reply::ok(Arc::new(parked.clone()) as Arc<dyn Stream>))
    }

    async fn forever<T>(&self) -> T {
        let _waits = Waits::begin(self);
        std::future::pending().await
    }
}

impl Stream for Parked {
    fn read(&self, _offset: u64, _count: u32) -> Reply<'_, Bytes> {
        Reply::later(self.forever())
    }

    fn write(&self, _offset: u64, _data: Bytes) -> Reply<'_, Written> {
        Reply::later(self.forever())
    }
}

/// One request that waits.
struct Waits<'a>(&'a Parked);

impl<'a> Waits<'a> {
    fn begin(parked: &'a Parked) -> Self {
        parked.count.fetch_add(1, Ordering::SeqCst);
        parked.changed.notify_waiters();
        Self(parked)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::SeqCst);
    }
}
