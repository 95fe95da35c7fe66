//! What is set of the attributes of a file that was just made: held back along with what is written to it.
//!
//! Who unpacks an archive, or copies with all that a file has, makes each file, writes it, sets its times, owner and
//! mode, and closes it. Asked for one by one over a long way that is most of the time. So what cannot be refused is set
//! once, when what was written has gone out. Invariants: what was written before it is held is written before it is
//! set, and what is written after is not undone by it; nothing is held that another could refuse, or would make
//! something else of.

use std::sync::Arc;

use p9::cancel::Cancel;
use p9::{Attr, Errno, SetAttr, SetTime};

use super::Hold;
use crate::begun::begin;
use crate::bridge::is_lost;
use crate::conflict::{self, Home};

/// setuid and setgid, which an owner may be denied, and a change of owner takes away.
const SPECIAL: u32 = 0o6000;

impl Hold {
    /// Holds `change`, if that may be done: gives the attributes as they are then, but for what the server's clock says
    /// of them.
    pub(crate) fn set(self: &Arc<Self>, change: SetAttr) -> Option<Attr> {
        self.made.as_ref()?;
        let mut state = self.state.lock();
        let change = to_hold(&state.seen, change)?;
        if state.failed.is_some() || !state.lease.as_ref().is_some_and(p9::tree::Lease::holds) {
            return None;
        }
        let all = SetAttr {
            mode: change.mode.or(state.change.mode),
            atime: change.atime.or(state.change.atime),
            mtime: change.mtime.or(state.change.mtime),
            ..SetAttr::default()
        };
        state.change = all;
        if all != SetAttr::default() && !std::mem::replace(&mut state.looked_after, true) {
            self.all.looks_after(self);
        }
        Some(Attr { size: self.inode.size().max(state.seen.size), ..changed(&state.seen, all) })
    }

    /// Sets what is held of the attributes. What goes wrong is told like what goes wrong with what was written.
    pub(super) async fn set_held(self: &Arc<Self>) {
        loop {
            let less = self.less.notified();
            let change = {
                let mut state = self.state.lock();
                if !state.setting && state.change == SetAttr::default() {
                    return;
                }
                let before = std::mem::replace(&mut state.setting, true);
                (!before).then(|| std::mem::take(&mut state.change))
            };
            match change {
                Some(change) => self.begin_to_set(change),
                None => less.await,
            }
        }
    }

    fn begin_to_set(self: &Arc<Self>, change: SetAttr) {
        let sets = Sets { hold: self.clone(), seen: Err(Errno::EIO) };
        let set = async move {
            let seen = sets.hold.set_now(change).await;
            sets.with(seen);
            Ok(())
        };
        // Whoever waits for it may be asked to end; the one who set it is not there any more.
        let setting = async move {
            _ = Cancel::default().run(set).await;
        };
        begin(&self.all.runtime, setting).detach();
    }

    async fn set_now(&self, change: SetAttr) -> Result<Attr, Errno> {
        let home = self.home.lock().await;
        let node = match (&*home, &self.made) {
            // Another has written the file, and what was written here is beside it.
            (Some(Home::Beside(..)), _) | (_, None) => return Err(Errno::ESTALE),
            (_, Some(node)) => node,
        };
        match node.set_attr(change).await {
            // The server was started anew: it is asked of the very file, if that is what was made here.
            Err(errno) if is_lost(errno) => {
                self.table.lost(&self.inode);
                let node = self.table.walk_to(&self.inode).await?;
                if home.is_none() && !conflict::is_known(&node, &self.known(), &node.attr().await?).await {
                    return Err(Errno::ESTALE);
                }
                node.set_attr(change).await
            }
            answer => answer,
        }
    }
}

/// What of `change` is to be held of a file with the attributes `seen`, whose owner asks; `None` if it may not be.
fn to_hold(seen: &Attr, change: SetAttr) -> Option<SetAttr> {
    let SetAttr { mode, uid, gid, size, atime, mtime } = change;
    let stays = uid.is_none_or(|uid| uid == seen.uid) && gid.is_none_or(|gid| gid == seen.gid);
    // Who takes rights away means what is written from then on, and from now on.
    let gives = mode.is_none_or(|mode| seen.mode & 0o777 & !mode == 0);
    let plain = gives && (mode.unwrap_or_default() | seen.mode) & SPECIAL == 0;
    // The time of the server, who alone knows it, is that of the moment.
    let told = ![atime, mtime].contains(&Some(SetTime::Now));
    (stays && plain && told && size.is_none()).then_some(SetAttr { mode, atime, mtime, ..SetAttr::default() })
}

/// `attr` after `change`.
fn changed(attr: &Attr, change: SetAttr) -> Attr {
    let time = |set: Option<SetTime>, before| match set {
        Some(SetTime::At(time)) => time,
        _ => before,
    };
    Attr {
        mode: change.mode.map_or(attr.mode, |mode| attr.mode & libc::S_IFMT | mode),
        atime: time(change.atime, attr.atime),
        mtime: time(change.mtime, attr.mtime),
        ..*attr
    }
}

/// Attributes are being set, until this is dropped.
struct Sets {
    hold: Arc<Hold>,
    seen: Result<Attr, Errno>,
}

impl Sets {
    fn with(mut self, seen: Result<Attr, Errno>) {
        self.seen = seen;
    }
}

impl Drop for Sets {
    fn drop(&mut self) {
        let Self { hold, seen } = self;
        if let Ok(attr) = seen {
            hold.inode.learn(attr);
        }
        // What was asked for meanwhile is old.
        hold.changes.file(hold.inode.qid_path);
        {
            let mut state = hold.state.lock();
            state.setting = false;
            match seen {
                Ok(attr) => state.saw(attr),
                Err(errno) => state.failed = state.failed.or(Some(*errno)),
            }
        }
        hold.less.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use p9::Time;

    use super::*;

    const TIME: Option<SetTime> = Some(SetTime::At(Time { sec: 7, nsec: 0 }));

    #[test]
    fn what_could_be_refused_or_become_something_else_is_not_held() {
        let seen = Attr { mode: 0o100_644, uid: 10, gid: 20, ..Attr::default() };
        let none = SetAttr::default();
        let set = SetAttr { mode: Some(0o755), uid: Some(10), gid: Some(20), mtime: TIME, ..none };
        assert_eq!(to_hold(&seen, set), Some(SetAttr { mode: Some(0o755), mtime: TIME, ..none }));
        for refused in [
            SetAttr { uid: Some(11), ..none },
            SetAttr { gid: Some(21), ..none },
            SetAttr { size: Some(0), ..none },
            SetAttr { mode: Some(0o2755), ..none },
            SetAttr { mode: Some(0o740), ..none },
            SetAttr { atime: Some(SetTime::Now), mtime: TIME, ..none },
        ] {
            assert_eq!(to_hold(&seen, refused), None, "{refused:?}");
        }
        // To give it to its owner takes the bit away.
        assert_eq!(to_hold(&Attr { mode: 0o104_755, ..seen }, SetAttr { uid: Some(10), ..none }), None);
    }

    #[test]
    fn a_mode_keeps_what_kind_of_file_it_is() {
        let seen = Attr { mode: 0o100_644, ..Attr::default() };
        let attr = changed(&seen, SetAttr { mode: Some(0o751), mtime: TIME, ..SetAttr::default() });
        assert_eq!((attr.mode, attr.mtime, attr.atime), (0o100_751, Time { sec: 7, nsec: 0 }, seen.atime));
    }
}
