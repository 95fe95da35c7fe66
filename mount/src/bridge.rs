//! What stands between the kernel's requests and the tree: how each is answered, watched and bounded.
//!
//! `fs` takes requests on fuser's threads and gives each to [`Bridge::answer`], with the work it asks for (in `names`,
//! `attrs`, `files`, `dirs`). The work is polled once in place: what is at hand is answered there. Otherwise it goes on
//! in a task of the runtime, parked with the watch. Invariant: each reply is used exactly once, and nothing of a
//! request happens after it was answered.

/// Asks `$inode`'s node something that may be asked again: if the node at hand turns out to be dead, another is walked
/// to. (A function would take a closure whose future is `Send` for every lifetime, which cannot be said yet.)
macro_rules! ask {
    ($bridge:ident, $inode:expr, |$node:ident| $question:expr) => {{
        let (mut node, mut fresh) = $bridge.table.node($inode).await?;
        loop {
            let $node = &node;
            let answer: Result<_, Errno> = async { $question }.await;
            match answer {
                Err(errno) if $crate::bridge::is_lost(errno) => {
                    $bridge.table.lost($inode);
                    if fresh {
                        break Err(errno);
                    }
                    (node, fresh) = ($bridge.table.walk_to($inode).await?, true);
                }
                answer => break answer,
            }
        }
    }};
}

/// Asks for a change, of the nodes of these inodes. If one of them turns out to be dead, others are walked to and it is
/// asked for again, unless it may have been done by then: that ends with `$unproven`, where it may not be done twice.
macro_rules! change {
    ($bridge:ident, $unproven:expr, [$($inode:expr),+], |$nodes:ident| $question:expr) => {{
        $bridge.writable()?;
        let (mut again, unproven): (bool, Option<Errno>) = (false, $unproven);
        loop {
            let $nodes = [$($bridge.table.node($inode).await?.0),+];
            let answer: Result<_, Errno> = async { $question }.await;
            match answer {
                Err(errno) if $crate::bridge::is_lost(errno) => {
                    $($bridge.table.lost($inode);)+
                    match unproven {
                        Some(unproven) if $crate::bridge::may_be_done(errno) => break Err(unproven),
                        _ if again => break Err(errno),
                        _ => again = true,
                    }
                }
                answer => break answer,
            }
        }
    }};
}

mod attrs;
mod backing;
mod by_name;
mod dirs;
mod exchanged;
mod files;
mod fs;
mod locks;
mod names;
mod unopened;

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use p9::cancel::Cancel;
use p9::{Errno, Name, NodeRef};
use parking_lot::Mutex;
use tokio::runtime::Handle as Runtime;

use backing::Backings;
pub(crate) use backing::Local;
use by_name::LookAgain;
pub(crate) use dirs::FIRST_ENTRIES;
pub(crate) use files::FIRST_BYTES;
pub(crate) use fs::Fs;
use unopened::Unopened;

use crate::Options;
use crate::ahead::Budget;
use crate::attr::errno;
use crate::begun::begin;
use crate::changes::Changes;
use crate::disk::Disk;
use crate::foresight::Foresight;
use crate::hold::{Held, Hold};
use crate::kept::Kept;
use crate::locks::Locks;
use crate::open::{Open, Opens};
use crate::table::{Inode, Table};
use crate::tell::Teller;
use crate::watch::Watch;

/// How much longer than [`Options::timeout`] a name or an attribute is waited for, so that the tree can say first what
/// is wrong. There has to be a limit: the kernel holds locks meanwhile, and the processes that wait for those cannot be
/// seen from here.
const GRACE: Duration = Duration::from_secs(5);
/// How long what is held is written out when the mount ends.
const LAST_WRITES: Duration = Duration::from_secs(8);
/// How much longer for what was cancelled to end.
const END_LIMIT: Duration = Duration::from_secs(10);

/// One mounted tree.
pub(crate) struct Bridge {
    table: Arc<Table>,
    opens: Opens,
    /// Those of them that the kernel never opened.
    unopened: Unopened,
    locks: Arc<Locks>,
    backings: Backings,
    /// Threads whose open was told to look the name up anew.
    look_again: Mutex<HashMap<u32, LookAgain>>,
    /// Files that were read, to be closed together.
    closing: Mutex<Vec<Arc<Open>>>,
    options: Options,
    runtime: Runtime,
    watch: Watch,
    read_ahead: Budget,
    foresight: Arc<Foresight>,
    changes: Arc<Changes>,
    kept: Arc<Kept>,
    teller: Teller,
    held: Arc<Held>,
    disk: Disk,
    ended: AtomicBool,
}

/// How long a request may take.
#[derive(Clone, Copy)]
enum Wait {
    /// Until the time-out, then `EIO`.
    Bounded,
    /// As long as it takes, or until its caller is asked to end.
    Unbounded,
}

type Work<T> = Pin<Box<dyn Future<Output = Result<T, Errno>> + Send>>;

impl Bridge {
    pub(crate) fn new(
        root: NodeRef, options: Options, runtime: Runtime, watch: Watch, kept: Arc<Kept>, teller: Teller,
    ) -> Arc<Self> {
        let table = Arc::new(Table::new(root, options.max_inodes_held));
        let held = Held::new(options.cache / 8, runtime.clone());
        let (read_ahead, ended) =
            (Budget::new(options.cache / 4, runtime.clone(), teller.clone()), AtomicBool::new(false));
        let changes = Arc::<Changes>::default();
        let disk = Disk::new(&options, runtime.clone());
        let (told, known) = (teller.clone(), table.clone());
        let foresight = Foresight::new(
            (options.ttl, options.cache / 8),
            runtime.clone(),
            changes.clone(),
            kept.clone(),
            told,
            known,
            disk.clone(),
        );
        let foresight = Arc::new(foresight);
        Arc::new(Self {
            table,
            opens: Opens::default(),
            unopened: Unopened::default(),
            locks: Arc::default(),
            backings: Backings::default(),
            look_again: Mutex::default(),
            closing: Mutex::default(),
            options,
            runtime,
            watch,
            read_ahead,
            foresight,
            changes,
            kept,
            teller,
            held,
            disk,
            ended,
        })
    }

    /// Answers `reply` with what `work` gives, by `send`; `caller` is the thread that waits for it.
    fn answer<R: Refuse, T: Send + 'static>(
        &self, caller: u32, wait: Wait, reply: R, work: impl Future<Output = Result<T, Errno>> + Send + 'static,
        send: impl FnOnce(R, T) + Send + 'static,
    ) {
        if self.ended.load(Ordering::Acquire) {
            return reply.refuse(Errno::ENOTCONN);
        }
        let finish = move |answer| match answer {
            Ok(value) => send(reply, value),
            Err(errno) => reply.refuse(errno),
        };
        let (cancel, watch, limit) = (Cancel::default(), self.watch.clone(), self.options.timeout + GRACE);
        let request = async move {
            let asked = cancel.clone();
            let work: Work<T> = Box::pin(async move { asked.run(work).await });
            let answering = async {
                match wait {
                    Wait::Unbounded => work.await,
                    Wait::Bounded => bounded(work, &cancel, limit).await,
                }
            };
            let (mut answering, mut parked) = (pin!(answering), None);
            let answer = poll_fn(|cx| {
                let answer = answering.as_mut().poll(cx);
                if answer.is_pending() {
                    parked.get_or_insert_with(|| watch.park(caller, cancel.clone()));
                }
                answer
            })
            .await;
            drop(parked);
            finish(answer);
        };
        begin(&self.runtime, request).detach();
    }

    /// Answers nothing any more but `ENOTCONN`, and ends what is being waited for.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.watch.end();
    }

    /// Writes out what is held of files that are open, which was acknowledged. It blocks, but for no longer than
    /// [`LAST_WRITES`].
    pub(crate) fn write_out(&self) {
        let holds = self.opens.holds();
        if holds.is_empty() {
            return;
        }
        let (done, all) = std::sync::mpsc::channel();
        self.runtime.spawn(async move {
            join_all(holds.iter().map(Hold::end)).await;
            _ = done.send(());
        });
        // The runtime may be ending, too.
        if all.recv_timeout(LAST_WRITES).is_err() {
            tracing::error!("what was written to files that were open was not all written out, and is lost");
        }
    }

    /// Lets go of every open file. The kernel has ended the session.
    pub(crate) fn clear(&self) {
        self.end();
        self.write_out();
        // Where programs had no time to close their files; the tree may outlive the mount.
        for holder in self.locks.end_all() {
            self.runtime.spawn(async move { holder.node.lock(holder.unlock(), false).await });
        }
        self.unopened.clear();
        self.opens.clear();
        self.closing.lock().clear();
        self.kept.end();
        self.foresight.end();
    }

    /// The inode that the kernel calls `id`.
    fn inode(&self, id: fuser::INodeNo) -> Result<Arc<Inode>, Errno> {
        self.table.get(id.0)
    }

    /// Writes out what is held back of `inode`, about which somebody asks, and tells nothing that is older than what
    /// the kernel writes by itself.
    async fn settle(&self, inode: &Inode) {
        if self.backings.writes(inode.id) {
            self.changed(inode);
        }
        if let Some(hold) = inode.held() {
            hold.settle().await;
        }
    }

    /// The node of an open file.
    async fn node_of(&self, open: &Open) -> Result<NodeRef, Errno> {
        match &open.node {
            Some(node) => Ok(node.clone()),
            None => Ok(self.table.node(&open.inode).await?.0),
        }
    }

    /// `inode` was changed through this mount: what is known of it is old.
    fn changed(&self, inode: &Inode) {
        inode.wrote(0);
        self.changes.file(inode.qid_path);
        self.kept.forget(inode.id);
    }

    /// A change of `inode` begins.
    fn changing<'a>(&'a self, inode: &'a Arc<Inode>) -> Changing<'a> {
        Changing { bridge: self, inode, name: None }
    }

    /// A change of what `name` stands for in `dir` begins, and of the directory.
    fn changing_name<'a>(&'a self, dir: &'a Arc<Inode>, name: Name<'a>) -> Changing<'a> {
        Changing { bridge: self, inode: dir, name: Some(name) }
    }

    fn writable(&self) -> Result<(), Errno> {
        if self.options.read_only { Err(Errno::EROFS) } else { Ok(()) }
    }
}

/// A change through this mount that is under way. However it ends, it may have been done: what is known is old then.
#[must_use = "it is noted when this is dropped"]
struct Changing<'a> {
    bridge: &'a Bridge,
    inode: &'a Arc<Inode>,
    name: Option<Name<'a>>,
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        let Self { bridge, inode, name } = self;
        if let Some(name) = name {
            bridge.changes.name(inode.qid_path, *name);
        }
        bridge.changed(inode);
    }
}

/// Whether the error says that the node itself, or the way to it, is no good any more.
pub(crate) fn is_lost(errno: Errno) -> bool {
    matches!(errno, Errno::EHOSTUNREACH | Errno::ENOTCONN | Errno::ECONNRESET | Errno::ESTALE)
}

/// Whether what was asked of a node that is no good any more may have been done: see [`p9::client::Client::resuming`].
pub(crate) fn may_be_done(errno: Errno) -> bool {
    errno == Errno::ECONNRESET
}

/// `work`, or `EIO` when that takes too long.
async fn bounded<T>(mut work: Work<T>, cancel: &Cancel, limit: Duration) -> Result<T, Errno> {
    if let Ok(answer) = tokio::time::timeout(limit, &mut work).await {
        return answer;
    }
    tracing::warn!("a request was not answered within {} s", limit.as_secs());
    cancel.cancel();
    match tokio::time::timeout(END_LIMIT, work).await {
        Ok(Ok(answer)) => Ok(answer),
        _ => Err(Errno::EIO),
    }
}

/// A reply that can carry an error: each of fuser's.
trait Refuse: Send + 'static {
    fn refuse(self, errno: Errno);
}

macro_rules! refuse {
    ($($reply:ident)*) => {
        $(impl Refuse for fuser::$reply {
            fn refuse(self, with: Errno) {
                self.error(errno(with));
            }
        })*
    };
}

refuse! {
    ReplyAttr ReplyCreate ReplyData ReplyDirectory ReplyDirectoryPlus ReplyEmpty ReplyEntry ReplyLock ReplyLseek ReplyOpen
    ReplyPoll ReplyStatfs ReplyWrite ReplyXattr
}
