//! What is typed to leave a command that goes on: `~.` at the beginning of a line, as in ssh(1).
//!
//! Used by `slashn attach`, in its runtime. What is typed is passed on; of `~~` at the beginning of a line one.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::oneshot;

/// Bytes that are read at a time.
const CHUNK: usize = 4096;

/// Where in a line what is typed is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum At {
    Begin,
    Tilde,
    Within,
}

/// Tells the end of it in what is typed.
struct Escape(At);

impl Escape {
    /// What of `typed` is for the command; and whether it is to be left.
    fn take(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len() + 1);
        for byte in typed {
            match (self.0, byte) {
                (At::Begin, b'~') => {
                    self.0 = At::Tilde;
                    continue;
                }
                (At::Tilde, b'.') => return (passed, true),
                (At::Tilde, b'~') => {}
                (At::Tilde, _) => passed.push(b'~'),
                _ => {}
            }
            passed.push(*byte);
            self.0 = if matches!(byte, b'\n' | b'\r') { At::Begin } else { At::Within };
        }
        (passed, false)
    }
}

/// Standard input, and what tells once it says that the command is to be left.
pub(super) fn stdin() -> (DuplexStream, oneshot::Receiver<()>) {
    let ((mut to, from), (leave, left)) = (duplex(CHUNK), oneshot::channel());
    tokio::spawn(async move {
        let (mut stdin, mut escape, mut typed) = (tokio::io::stdin(), Escape(At::Begin), [0; CHUNK]);
        let mut takes = true;
        while let Ok(count @ 1..) = stdin.read(&mut typed).await {
            let (passed, leaves) = escape.take(&typed[..count]);
            if leaves {
                let _ = leave.send(());
                return;
            }
            // A command that reads nothing can be left all the same.
            takes = takes && to.write_all(&passed).await.is_ok();
        }
        // Nothing more is typed.
        drop(to);
        std::future::pending::<()>().await;
        drop(leave);
    });
    (from, left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tilde_and_a_dot_end_it_at_the_beginning_of_a_line_alone() {
        let typed = |pieces: &[&str]| {
            let mut escape = Escape(At::Begin);
            let mut all = String::new();
            for piece in pieces {
                let (passed, leaves) = escape.take(piece.as_bytes());
                all += std::str::from_utf8(&passed).unwrap();
                if leaves {
                    return all + "!";
                }
            }
            all
        };
        assert_eq!(typed(&["~."]), "!");
        assert_eq!(typed(&["a~.\n", "~", ".x"]), "a~.\n!");
        assert_eq!(typed(&["~~.\n~x\n", "~\n~."]), "~.\n~x\n~\n!");
        assert_eq!(typed(&["\r~.", "x"]), "\r!");
    }
}
