//! What the daemon, the launcher, mounters and inits tell each other: one JSON text and a few descriptors a packet.
//!
//! Each job has a socket pair (SEQPACKET): events come from the mounter, then init, then, once all is over, the
//! launcher; commands go to init. Synchronous: whoever wants to wait asks poll(2) or its runtime first. Invariant: a
//! packet that is cut or garbled is an error, never a guess.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Error, Exit, Usage};

/// Descriptors in one packet at most.
pub(super) const DESCRIPTORS: usize = 5;
/// Bytes in one packet at most: a path or two, and notes.
const BYTES: usize = 64 << 10;

/// To the daemon, about one job.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum Event {
    /// Init is there and will go on once its root is served. With it: the FUSE descriptor, and init's pidfd.
    Started {
        /// Init, in the daemon's pid namespace.
        init: i32,
    },
    /// With it: some of the job's sockets, in order.
    Listening,
    /// The program runs.
    Running {
        /// What was passed over on the way.
        notes: Vec<String>,
    },
    /// The program ended.
    Exited { exit: Exit, usage: Usage },
    /// It never ran.
    Failed(Error),
    /// Init ended, and so did all others of its pid namespace.
    Gone { exit: Exit, usage: Usage },
}

/// To init.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum Command {
    /// Send this signal to the program's process group; SIGKILL goes to all.
    Signal(i32),
}

/// To the launcher: start a job. With it: the spec, the job's socket, standard input, output and error.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Start;

/// Sends `message` and `fds`.
pub(crate) fn send(socket: impl AsFd, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    if text.len() > BYTES {
        return Err(rustix::io::Errno::MSGSIZE.into());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    rustix::io::retry_on_intr(|| sendmsg(&socket, &[IoSlice::new(&text)], &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// Receives one message; none if the other side is gone.
pub(crate) fn receive<M: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
    let mut text = vec![0; BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = loop {
        let mut parts = [IoSliceMut::new(&mut text)];
        match recvmsg(&socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            // The peer ended without reading all that it was sent, which is told once, before what it said last.
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNRESET) => {}
            got => break got?,
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if got.bytes == 0 {
        return Ok(None);
    }
    if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(rustix::io::Errno::MSGSIZE.into());
    }
    Ok(Some((serde_json::from_slice(&text[..got.bytes])?, fds)))
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn what_a_peer_said_last_arrives_though_it_did_not_read_all_that_it_was_sent() {
        let (a, b) = pair();
        send(&b, &Event::Listening, &[]).unwrap();
        send(&a, &Command::Signal(9), &[]).unwrap();
        drop(b);
        assert!(matches!(receive(&a).unwrap(), Some((Event::Listening, _))));
        assert!(receive::<Event>(&a).unwrap().is_none());
    }

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (a, b) = pair();
        send(&a, &Event::Started { init: 7 }, &[a.as_fd(), b.as_fd()]).unwrap();
        let (event, fds) = receive::<Event>(&b).unwrap().unwrap();
        assert!(matches!(event, Event::Started { init: 7 }));
        assert_eq!(fds.len(), 2);
    }

    #[test]
    fn a_socket_whose_other_side_is_gone_gives_no_message() {
        let (a, b) = pair();
        drop(a);
        assert!(receive::<Event>(&b).unwrap().is_none());
        assert!(send(&b, &Start, &[]).is_err());
    }

    #[test]
    fn a_garbled_message_is_an_error() {
        let (a, b) = pair();
        send(&a, &"rubbish", &[]).unwrap();
        assert!(receive::<Event>(&b).is_err());
    }
}
