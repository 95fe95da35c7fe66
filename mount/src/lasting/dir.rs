//! Open directories that outlive the restart of their server.
//!
//! A listing goes on after the last entry that was given: a cookie says the same to a server that was started anew.

use std::ops::ControlFlow;

use p9::{Dir, DirSink, Entry, Errno, Handle, Reply};

use super::{Lasting, State, TRIES};
use crate::bridge::is_lost;

impl Dir for Lasting {
    fn list<'a>(&'a self, cookie: u64, each: &'a mut DirSink<'a>) -> Reply<'a, ()> {
        Reply::later(async move {
            let (mut after, mut tries) = (cookie, 0);
            loop {
                let State { handle, times, .. } = self.now()?;
                let Handle::Dir(dir) = handle else { return Err(Errno::ENOTDIR) };
                let mut last = after;
                let mut taken = |entry: Entry<'_>| -> ControlFlow<()> {
                    let cookie = entry.cookie;
                    each(entry)?;
                    last = cookie;
                    ControlFlow::Continue(())
                };
                let answer = dir.list(after, &mut taken).await;
                (after, tries) = (last, tries + 1);
                match answer {
                    Err(errno) if is_lost(errno) && tries < TRIES => self.open_again(times, errno).await?,
                    answer => return answer,
                }
            }
        })
    }
}
