//! A task that is begun where it is asked for, and goes on in the runtime only if it has to wait.
//!
//! To hand work to the runtime's thread costs its waking; much of what a mount does needs no more than one message
//! sent, which whoever asks can do.

use std::future::Future;

use async_task::{Runnable, Task};
use tokio::runtime::Handle as Runtime;

/// Polls `work` once here, and then in `runtime` whenever there is something to do. Dropping what it gives cancels the
/// work; awaiting it panics if that did.
pub(crate) fn begin<T: Send + 'static>(runtime: &Runtime, work: impl Future<Output = T> + Send + 'static) -> Task<T> {
    let later = {
        let runtime = runtime.clone();
        move |work: Runnable| drop(runtime.spawn(async move { work.run() }))
    };
    let (work, task) = async_task::spawn(work, later);
    let _runtime = runtime.enter();
    work.run();
    task
}
