//! Telling the kernel that what it was told is old, when somebody else changes a file or a directory.
//!
//! Told by whoever hears of a broken lease, from any thread. A thread tells the kernel of attributes, for which it
//! waits for nobody, then gives the lease back, and whoever waits for it goes on. Pages and names are told after that,
//! each file and directory by itself, since the kernel waits for reads that are under way, or for whoever has the
//! directory locked. Invariant: no lease waits for pages or names.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Waker};
use std::time::Duration;

use fuser::{INodeNo, Notifier};
use p9::tree::{Lease, LeaseKind};
use p9::{Name, NameBuf};
use tokio::runtime::Handle as Runtime;
use tokio::sync::Semaphore;

use crate::allocator;
use crate::kept::{File, Kept};
use crate::leash::{Leash, Old};
use crate::pages::Gift;
use crate::table::Inode;

/// Files and directories about which the kernel is told at a time what it may have to wait for.
const AT_A_TIME: usize = 16;

/// What the kernel was told of so many files and names takes room that is worth giving back.
const MANY: usize = 1000;

/// Tells the kernel through one mount.
#[derive(Clone)]
pub(crate) struct Teller {
    broken: Sender<Broken>,
    kernel: Arc<OnceLock<Kernel>>,
    ttl: Duration,
    late: Late,
}

/// The kernel, as one that is told things.
pub(crate) type Kernel = Notifier;

/// Where the kernel is told what it may have to wait for.
#[derive(Clone)]
struct Late {
    runtime: Runtime,
    turns: Arc<Semaphore>,
    gifts: Arc<Semaphore>,
}

/// A lease that was broken.
enum Broken {
    File(Arc<File>),
    /// Down to so much.
    Dir(Arc<Leash>, LeaseKind),
    /// Nobody needs it any more.
    Gone(Lease, Old),
}

/// What the thread works with.
struct Thread {
    kept: Weak<Kept>,
    kernel: Arc<OnceLock<Kernel>>,
    ttl: Duration,
    late: Late,
}

impl Teller {
    /// Starts the thread, which also takes out of `kept` what is broken; it ends with the last clone. The kernel keeps
    /// what it is told for `ttl`.
    pub(crate) fn start(kept: &Arc<Kept>, ttl: Duration, runtime: Runtime) -> io::Result<Self> {
        let (broken, breaks) = channel();
        let kernel: Arc<OnceLock<Kernel>> = Arc::default();
        let late =
            Late { runtime, turns: Arc::new(Semaphore::new(AT_A_TIME)), gifts: Arc::new(Semaphore::new(AT_A_TIME)) };
        let thread = Thread { kept: Arc::downgrade(kept), kernel: kernel.clone(), ttl, late: late.clone() };
        std::thread::Builder::new().name("mount-tell".into()).spawn(move || thread.run(&breaks))?;
        Ok(Self { broken, kernel, ttl, late })
    }

    /// From now on there is a kernel to be told.
    pub(crate) fn begin(&self, kernel: Kernel) {
        _ = self.kernel.set(kernel);
    }

    /// How long the kernel keeps what it is told.
    pub(crate) fn ttl(&self) -> Duration {
        self.ttl
    }

    /// The kernel was told attributes of `inode` that are old. For this it waits for nobody, so it may be said while a
    /// request for the file is answered.
    pub(crate) fn attributes_changed(&self, inode: &Inode) {
        if let Some(kernel) = self.kernel.get() {
            tell(kernel, INodeNo(inode.id), -1);
        }
    }

    /// The kernel is to forget the files `names` in `dir`, unless it uses them.
    pub(crate) fn forgets(&self, dir: &Inode, names: Vec<NameBuf>) {
        let id = dir.id;
        self.late.tell(&self.kernel, move |kernel| tell_names(kernel, id, &names));
    }

    /// The attributes of `dirs`, what they hold, and what `names` stand for in directories are old. Returns when the
    /// kernel knows it, which may take until nobody has those directories locked.
    pub(crate) fn exchanged<'a>(&self, dirs: &[u64], names: impl Iterator<Item = (u64, Name<'a>)>) {
        let Some(kernel) = self.kernel.get() else { return };
        for (dir, name) in names {
            tell_names(kernel, dir, &[name.into()]);
        }
        dirs.iter().for_each(|dir| tell(kernel, INodeNo(*dir), 0));
    }

    /// The kernel's attributes and pages of `inode` are old. Waits until it has dropped them, which it does when the
    /// reads that are under way have ended.
    pub(crate) async fn contents_changed(&self, inode: &Inode) {
        let (Some(kernel), id) = (self.kernel.get().cloned(), INodeNo(inode.id)) else { return };
        inode.pages().settled().await;
        _ = tokio::task::spawn_blocking(move || tell(&kernel, id, 0)).await;
    }

    /// The kernel is given `gifts`, unless many are being given already. Returns when it has them.
    pub(crate) async fn give(&self, gifts: Vec<Gift>) {
        let Ok(turn) = self.late.gifts.clone().try_acquire_owned() else { return };
        if let Some(kernel) = self.kernel.get().cloned().filter(|_| !gifts.is_empty()) {
            let giving = move || {
                gifts.iter().for_each(|gift| gift.give(&kernel));
                drop(turn);
            };
            _ = self.late.runtime.spawn_blocking(giving).await;
        }
    }

    /// The lease of `file` was broken.
    pub(crate) fn broken(&self, file: Arc<File>) {
        // The thread outlives every clone.
        _ = self.broken.send(Broken::File(file));
    }

    /// The lease of `dir` was broken down to `keep`.
    pub(crate) fn dir_broken(&self, dir: Arc<Leash>, keep: LeaseKind) {
        _ = self.broken.send(Broken::Dir(dir, keep));
    }

    /// What the kernel was told under `leash` is forgotten once it keeps that no longer.
    pub(crate) fn forgets_in_time(&self, leash: Weak<Leash>) {
        let ttl = self.ttl;
        self.late.runtime.spawn(async move {
            let mut told = 0;
            loop {
                tokio::time::sleep(ttl * 3 / 2).await;
                told = leash.upgrade().map_or(0, |leash| leash.told()).max(told);
                if leash.upgrade().is_none_or(|leash| !leash.forgets_old(ttl)) {
                    if told >= MANY {
                        _ = tokio::task::spawn_blocking(allocator::give_back).await;
                    }
                    return;
                }
            }
        });
    }

    /// `lease`, under which the kernel was told what is `old` from now on, is to be given back.
    pub(crate) fn dir_gone(&self, lease: Lease, old: Old) {
        _ = self.broken.send(Broken::Gone(lease, old));
    }
}

impl Thread {
    fn run(&self, breaks: &Receiver<Broken>) {
        while let Ok(broken) = breaks.recv() {
            match broken {
                Broken::File(file) => self.file(&file),
                Broken::Dir(dir, keep) => self.dir(&dir, keep),
                Broken::Gone(lease, old) => {
                    self.old(&old);
                    drop(lease);
                    self.old_names(old);
                }
            }
        }
    }

    fn file(&self, file: &Arc<File>) {
        let inode = file.inode();
        if let Some(inode) = &inode {
            self.attributes(inode.id);
        }
        file.let_go();
        if let Some(kept) = self.kept.upgrade() {
            kept.drop_file(file);
        }
        if let Some(inode) = inode {
            self.late.pages_changed(&self.kernel, vec![inode]);
        }
    }

    fn dir(&self, dir: &Leash, keep: LeaseKind) {
        let old = dir.told_lately(self.ttl, keep);
        self.old(&old);
        if let Some(dir) = old.dir.filter(|_| keep < LeaseKind::Attr) {
            self.attributes(dir);
        }
        let fetched = if keep < LeaseKind::Read { dir.uncovered() } else { Vec::new() };
        fetched.iter().for_each(|file| self.uncovered(file));
        dir.let_go(keep);
        let kept = self.kept.upgrade();
        let pages = fetched.iter().filter_map(|file| {
            kept.iter().for_each(|kept| kept.drop_file(file));
            file.inode().filter(|_| file.was_opened())
        });
        let pages: Vec<_> = pages.collect();
        if !pages.is_empty() {
            self.late.pages_changed(&self.kernel, pages);
        }
        if let Some(dir) = old.dir.filter(|_| keep < LeaseKind::Read) {
            // What the kernel has listed of it.
            self.late.tell(&self.kernel, move |kernel| tell(kernel, INodeNo(dir), 0));
        }
        self.old_names(old);
    }

    /// What the kernel was told of attributes is old.
    fn old(&self, old: &Old) {
        old.files.iter().for_each(|file| self.attributes(*file));
    }

    /// The same of names.
    fn old_names(&self, Old { dir, names, .. }: Old) {
        if let Some(dir) = dir.filter(|_| !names.is_empty()) {
            self.late.tell(&self.kernel, move |kernel| tell_names(kernel, dir, &names));
        }
    }

    /// The lease that covers `file`, which was fetched, is about to be given back.
    fn uncovered(&self, file: &Arc<File>) {
        file.broken();
        let in_use = file.inode().is_some_and(|inode| inode.fetched().is_some());
        let Some(fetched) = file.as_fetched().filter(|_| in_use).cloned() else { return };
        let mut opening = Box::pin(async move { _ = fetched.opened().await });
        // It is asked for before the lease goes; its answer is not waited for.
        let _runtime = self.late.runtime.enter();
        if opening.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            self.late.runtime.spawn(opening);
        }
    }

    fn attributes(&self, id: u64) {
        if let Some(kernel) = self.kernel.get() {
            tell(kernel, INodeNo(id), -1);
        }
    }
}

impl Late {
    /// The kernel's pages of these are old.
    fn pages_changed(&self, kernel: &OnceLock<Kernel>, inodes: Vec<Arc<Inode>>) {
        let settled = inodes.clone();
        let settled = async move {
            for inode in settled {
                inode.pages().settled().await;
            }
        };
        self.tell_after(settled, kernel, move |kernel| {
            inodes.iter().for_each(|inode| tell(kernel, INodeNo(inode.id), 0));
        });
    }

    /// Tells it on a thread that may block.
    fn tell(&self, kernel: &OnceLock<Kernel>, tell: impl FnOnce(&Kernel) + Send + 'static) {
        self.tell_after(std::future::ready(()), kernel, tell);
    }

    fn tell_after(
        &self, before: impl Future<Output = ()> + Send + 'static, kernel: &OnceLock<Kernel>,
        tell: impl FnOnce(&Kernel) + Send + 'static,
    ) {
        let Some(kernel) = kernel.get().cloned() else { return };
        let turns = self.turns.clone();
        self.runtime.spawn(async move {
            before.await;
            let Ok(_turn) = turns.acquire().await else { return };
            _ = tokio::task::spawn_blocking(move || tell(&kernel)).await;
        });
    }
}

/// The attributes of `id` are old and, unless `from` is negative, the pages from there on.
fn tell(kernel: &Kernel, id: INodeNo, from: i64) {
    told(kernel.inval_inode(id, from, 0));
}

/// What `names` stand for in the directory `id` is old.
fn tell_names(kernel: &Kernel, id: u64, names: &[NameBuf]) {
    for name in names {
        told(kernel.inval_entry(INodeNo(id), OsStr::from_bytes(name.as_name().as_bytes())));
    }
}

fn told(answer: io::Result<()>) {
    if let Err(err) = answer {
        tracing::debug!(%err, "the kernel was not told of a change");
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One that does nothing.
    pub(crate) fn runtime() -> Runtime {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime").handle().clone()
    }

    #[test]
    fn the_thread_ends_with_the_last_teller() {
        let kept = Arc::<Kept>::default();
        let teller = Teller::start(&kept, Duration::ZERO, runtime()).expect("a thread");
        let kernel = teller.kernel.clone();
        drop(teller);
        while Arc::strong_count(&kernel) > 1 {
            std::thread::yield_now();
        }
    }
}
