//! The contents of a file that were fetched without opening it, as an open file.
//!
//! Made ahead of a program that goes through a listed directory (see [`crate::foresight`]), asked by reads, in the
//! request's task. While the directory's lease says that the file is as it was listed, what was fetched is all there is
//! to read. Before it may be removed or moved, and once somebody else may have changed it, a file that is in use is
//! opened after all, once; where it is not found any more whoever has it open still has what it held.

use std::sync::Weak;

use bytes::Bytes;
use p9::{Errno, Handle, How, NameBuf, NodeRef, Opened, Qid, Reply, Stream, Want};
use tokio::sync::OnceCell;

use crate::kept::File;

/// What was fetched of a file.
pub(crate) struct Fetched {
    dir: NodeRef,
    name: NameBuf,
    qid: Qid,
    bytes: Bytes,
    /// What says whether it is still so.
    file: Weak<File>,
    opened: OnceCell<Option<Handle>>,
}

impl Fetched {
    /// The `bytes` of the file `qid`, called `name` in `dir`, as long as `file` is good.
    pub(crate) fn new(dir: NodeRef, name: NameBuf, qid: Qid, bytes: Bytes, file: Weak<File>) -> Self {
        Self { dir, name, qid, bytes, file, opened: OnceCell::new() }
    }

    /// The file itself, opened; `None` if it is not there any more.
    pub(crate) async fn opened(&self) -> Result<Option<&Handle>, Errno> {
        let open = async || {
            let names = [self.name.as_name()];
            match self.dir.open_at(&names, How::READ, Want::default()).await {
                Ok(Opened { node: Some(node), handle, .. }) => {
                    let same = (node.qid().kind, node.qid().path) == (self.qid.kind, self.qid.path);
                    // Whoever has it open may ask about it, or change it, when it has no name any more.
                    if same && let Some(inode) = self.file.upgrade().and_then(|file| file.inode()) {
                        inode.pin_opened(&node);
                    }
                    Ok(same.then_some(handle))
                }
                Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ESTALE) => Ok(None),
                Err(errno) => Err(errno),
            }
        };
        Ok(self.opened.get_or_try_init(open).await?.as_ref())
    }
}

impl Stream for Fetched {
    fn seekable(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, count: u32) -> Reply<'_, Bytes> {
        let here = Handle::Bytes(self.bytes.clone());
        Reply::later(async move {
            if self.file.upgrade().is_some_and(|file| file.is_good()) {
                return here.read(offset, count).await;
            }
            match self.opened().await? {
                Some(file) => file.read(offset, count).await,
                None => here.read(offset, count).await,
            }
        })
    }
}
