//! Grants that are honoured, and all that are not.

use proptest::prelude::*;

use super::*;
use crate::keys::file;

fn key(name: &str) -> SecretKey {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    file::generate(&path, name).unwrap();
    file::read(&path).unwrap().unwrap()
}

fn only(text: &str) -> Vec<Only> {
    parse_only(text).unwrap()
}

/// A user, a node that holds a grant, the node that it is for, and somebody else.
struct Keys {
    user: SecretKey,
    holder: SecretKey,
    audience: SecretKey,
    other: SecretKey,
}

impl Keys {
    fn new() -> Self {
        Self { user: key("user"), holder: key("holder"), audience: key("audience"), other: key("other") }
    }

    fn grant(&self) -> Grant {
        Grant {
            holder: self.holder.key.fingerprint(),
            audience: self.audience.key.fingerprint(),
            only: only("src,docs:ro"),
            session: "beta/17".into(),
            until: until(Duration::from_secs(600)),
        }
    }

    /// What the audience says to `by` with `grant`, where the user may do everything.
    fn said(&self, grant: &str, by: &SecretKey) -> Result<Rights, String> {
        let authorized = |key: &Key| {
            let (fingerprint, user) = (key.fingerprint().into(), "user".into());
            (*key == self.user.key).then_some(Granted { fingerprint, user, rights: Rights::All })
        };
        check(grant, &by.key.fingerprint(), &self.audience.key.fingerprint(), &authorized)
            .map(|(granted, _)| granted.rights)
    }

    #[track_caller]
    fn refused(&self, grant: &str, by: &SecretKey, reason: &str) {
        let refused = self.said(grant, by).unwrap_err();
        assert!(refused.contains(reason), "{refused}");
    }
}

#[test]
fn a_grant_is_what_its_signer_may_narrowed_to_what_it_says() {
    let keys = Keys::new();
    let grant = keys.grant().sign(&keys.user).unwrap();
    assert_eq!(keys.said(&grant, &keys.holder).unwrap(), Rights::Only(only("src,docs:ro").into()));
    let mine = |_: &Key| {
        let rights = Rights::Only(only("src:ro,own").into());
        Some(Granted { fingerprint: "".into(), user: "user".into(), rights })
    };
    let (granted, until) =
        check(&grant, &keys.holder.key.fingerprint(), &keys.audience.key.fingerprint(), &mine).unwrap();
    assert_eq!((granted.rights, &*granted.user), (Rights::Only(only("src:ro").into()), "user"));
    assert_eq!((until, end(&grant)), (keys.grant().until, Ok(until)));
}

#[test]
fn a_forged_grant_is_refused() {
    let keys = Keys::new();
    let grant = keys.grant().sign(&keys.user).unwrap();
    for (from, to) in [("src", "*"), ("docs:ro", "docs"), ("until 1", "until 2"), ("17", "18"), ("END", "EMD")] {
        let forged = grant.replacen(from, to, 1);
        assert_ne!(forged, grant);
        assert!(keys.said(&forged, &keys.holder).is_err(), "{from} became {to}");
    }
    let stranger = keys.grant().sign(&keys.other).unwrap();
    keys.refused(&stranger, &keys.holder, "may not come in itself");
    keys.refused(&keys.grant().sign(&keys.holder).unwrap(), &keys.holder, "may not come in itself");
    keys.refused("", &keys.holder, "no grant");
    keys.refused(&keys.grant().text(), &keys.holder, "no grant");
}

#[test]
fn a_grant_is_used_by_its_holder_at_its_audience_in_its_time() {
    let keys = Keys::new();
    keys.refused(&keys.grant().sign(&keys.user).unwrap(), &keys.other, "its holder is SHA256:");
    let elsewhere = Grant { audience: keys.other.key.fingerprint(), ..keys.grant() };
    keys.refused(&elsewhere.sign(&keys.user).unwrap(), &keys.holder, "for another node");
    let over = Grant { until: now(), ..keys.grant() };
    keys.refused(&over.sign(&keys.user).unwrap(), &keys.holder, "its time is over");
}

#[test]
fn a_grant_is_narrowed_by_its_holder_and_never_widened() {
    let keys = Keys::new();
    let grant = keys.grant().sign(&keys.user).unwrap();
    let narrow = Grant { holder: keys.other.key.fingerprint(), only: only("docs:ro"), ..keys.grant() };
    let narrowed = narrow.narrow(&grant, &keys.holder).unwrap();
    assert_eq!(keys.said(&narrowed, &keys.other).unwrap(), Rights::Only(only("docs:ro").into()));
    keys.refused(&narrowed, &keys.holder, "its holder is ");
    assert!(narrow.narrow(&grant, &keys.other).is_err(), "who does not hold it narrows nothing");
    let again = Grant { only: only("src"), ..narrow.clone() };
    assert!(again.narrow(&narrowed, &keys.other).is_err(), "what is gone stays gone");
    for wide in [
        Grant { only: only("docs"), ..narrow.clone() },
        Grant { only: only("*"), ..narrow.clone() },
        Grant { until: narrow.until + 1, ..narrow.clone() },
        Grant { audience: keys.other.key.fingerprint(), ..narrow.clone() },
    ] {
        assert!(wide.narrow(&grant, &keys.holder).is_err());
        // And by one who does not ask.
        let text = grant.clone() + &wide.text();
        let forced = text.clone() + &signature(&text, &keys.holder).unwrap();
        keys.refused(&forced, &keys.other, "wider than what it was made of");
        let text = grant.clone() + &narrow.text();
        keys.refused(&(text.clone() + &signature(&text, &keys.other).unwrap()), &keys.other, "is not its holder");
    }
    // A part alone, or on another grant, says nothing.
    let part = &narrowed[grant.len()..];
    keys.refused(part, &keys.other, "signature is none");
    let other = Grant { session: "beta/18".into(), ..keys.grant() }.sign(&keys.user).unwrap();
    keys.refused(&(other + part), &keys.other, "signature is none");
}

#[test]
fn a_key_of_p_256_grants_too() {
    let signed = |der: &[u8]| from_ssh(&to_ssh(der).unwrap()).unwrap();
    let der = [&[0x30, 70, 0x02, 33, 0][..], &[0x80; 32], &[0x02, 33, 0], &[0x90; 32]].concat();
    assert_eq!(signed(&der), der);
    assert_eq!(to_ssh(&der[..60]), None);
    assert_eq!(from_ssh(&[0, 0, 0, 200, 1]), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn no_text_makes_the_check_panic(text: String, cut in 0usize..600) {
        let keys = Keys::new();
        let grant = keys.grant().sign(&keys.user).unwrap();
        prop_assert!(keys.said(&text, &keys.holder).is_err());
        prop_assert!(keys.said(&grant[..cut.min(grant.len() - 1)], &keys.holder).is_err());
    }
}
