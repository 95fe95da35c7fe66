//! One line of authorized_keys: sshd(8), "AUTHORIZED_KEYS FILE FORMAT", of which the options are ours to judge.
//!
//! Called by the table above, at each reading of the file. Invariant: a line is let in only if every word of it was
//! understood.

use p9::who::{Only, Rights};

use crate::config::export_name;
use crate::keys::Key;

/// The key of `line` and its rights; nothing for a blank line or a comment. Errors say why the line is refused.
pub(super) fn parse(line: &str) -> Result<Option<(Key, Rights)>, String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    // As sshd does: options are what stands before a key.
    if is_key_type(line.split_whitespace().next().unwrap_or_default()) {
        return Key::from_line(line).map(|key| Some((key, Rights::All)));
    }
    let (options, key) = split_options(line)?;
    let mut only = Vec::new();
    for option in options {
        match option.split_once('=') {
            Some((name, value)) if name.eq_ignore_ascii_case("only") => {
                let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
                only.extend(parse_only(value.ok_or("option `only` is not written only=\"EXPORT[:ro],...\"")?)?);
            }
            _ => return Err(format!("option `{option}` cannot be honoured")),
        }
    }
    Ok(Some((Key::from_line(key)?, Rights::Only(only.into()))))
}

/// The exports of `EXPORT[:ro],...`, of which there is at least one; `*` is every export.
pub fn parse_only(list: &str) -> Result<Vec<Only>, String> {
    let one = |word: &str| {
        let (export, read_only) = word.strip_suffix(":ro").map_or((word, false), |export| (export, true));
        let export = if export == Only::EVERY { export.to_owned() } else { export_name(export)? };
        Ok(Only { export, read_only })
    };
    list.split(',').map(one).collect()
}

fn is_key_type(word: &str) -> bool {
    ["ssh-", "ecdsa-", "sk-"].iter().any(|prefix| word.starts_with(prefix))
}

/// The options, split at commas, and the rest of the line; blanks and commas between double quotes do not count.
fn split_options(line: &str) -> Result<(Vec<&str>, &str), String> {
    let (mut options, mut quoted, mut start) = (Vec::new(), false, 0);
    for (at, c) in line.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '\\' if quoted => return Err("an option holds a backslash".into()),
            ',' if !quoted => {
                options.push(&line[start..at]);
                start = at + 1;
            }
            c if c.is_whitespace() && !quoted => {
                options.push(&line[start..at]);
                return Ok((options, &line[at..]));
            }
            _ => {}
        }
    }
    Err("is no public key in OpenSSH's format".into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f bob # and more";

    fn only(export: &str, read_only: bool) -> Only {
        Only { export: export.into(), read_only }
    }

    #[test]
    fn a_bare_key_may_do_everything_and_one_with_only_just_that() {
        let (key, rights) = parse(KEY).unwrap().unwrap();
        assert_eq!((key.comment(), rights), ("bob # and more", Rights::All));
        let (_, rights) = parse(&format!("only=\"docs:ro,src\" {KEY}")).unwrap().unwrap();
        assert_eq!(rights, Rights::Only([only("docs", true), only("src", false)].into()));
        assert_eq!(parse("  # comment").unwrap(), None);
        assert_eq!(parse("").unwrap(), None);
    }

    #[test]
    fn a_line_that_is_not_understood_in_whole_is_refused() {
        for (options, reason) in [
            ("command=\"/bin/ls\"", "option `command=\"/bin/ls\"` cannot be honoured"),
            ("restrict", "option `restrict` cannot be honoured"),
            ("only=\"a\",from=\"10.0.0.1\"", "option `from=\"10.0.0.1\"` cannot be honoured"),
            ("cert-authority", "option `cert-authority` cannot be honoured"),
            ("only=a", "option `only` is not written"),
            ("only=\"\"", "name of an export"),
            ("only=\"a b\"", "name of an export"),
            ("only=\"a,../b\"", "name of an export"),
            ("only", "option `only` cannot be honoured"),
            ("only=\"a\",", "option `` cannot be honoured"),
        ] {
            let error = parse(&format!("{options} {KEY}")).unwrap_err();
            assert!(error.contains(reason), "{options}: {error}");
        }
        for line in ["ssh-ed25519", "ssh-ed25519 AAAA", "garbage", "only=\"a\"", "only=\"a ssh-ed25519 AAAA"] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert!(parse("ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAAQC7 x").is_err());
    }

    proptest! {
        #[test]
        fn no_line_brings_the_parser_down(line in ".{0,200}") {
            let _ = parse(&line);
            let _ = parse(&format!("{line} {KEY}"));
        }
    }
}
