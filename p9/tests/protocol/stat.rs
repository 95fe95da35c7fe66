//! The stat structure of 9P2000 as text: `FIELD:VALUE;FIELD:VALUE`, written down from stat(5) and not from the crate.
//!
//! In what is sent, a field that is not there leaves as it is what it stands for; in what is expected, it does not
//! matter.

use crate::peer::{field, length};

const FIELDS: &[(&str, char)] = &[
    ("type", '2'),
    ("dev", '4'),
    ("qid", 'q'),
    ("mode", '4'),
    ("atime", '4'),
    ("mtime", '4'),
    ("length", '8'),
    ("name", 's'),
    ("uid", 's'),
    ("gid", 's'),
    ("muid", 's'),
];

/// The bytes of a stat, its size first.
pub(crate) fn encode(text: &str) -> Vec<u8> {
    let given = parse(text);
    let fields = FIELDS.iter().flat_map(|(name, kind)| match given.iter().find(|(given, _)| given == name) {
        Some((_, value)) => field(*kind, value),
        None if *kind == 's' => field('s', ""),
        None => vec![0xff; kind.to_digit(10).map_or(13, |size| size as usize)],
    });
    let fields: Vec<u8> = fields.collect();
    [&(fields.len() as u16).to_le_bytes(), &fields[..]].concat()
}

/// Whether `bytes` are one stat that has what `text` says.
pub(crate) fn is(bytes: &[u8], text: &str) -> bool {
    split(bytes).is_some_and(|(_, rest)| rest.is_empty())
        && parse(text).iter().all(|(name, value)| {
            let kind = FIELDS.iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("what is {name}?")).1;
            value_of(bytes, name) == Some(&field(kind, value)[..])
        })
}

/// The first stat of several, and the rest.
pub(crate) fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let size = usize::from(u16::from_le_bytes(*bytes.first_chunk()?));
    bytes.split_at_checked(2 + size)
}

/// The name in a stat.
pub(crate) fn name(stat: &[u8]) -> String {
    String::from_utf8(value_of(stat, "name").unwrap()[2..].to_vec()).unwrap()
}

fn value_of<'a>(stat: &'a [u8], wanted: &str) -> Option<&'a [u8]> {
    let mut rest = &stat[2..];
    for (name, kind) in FIELDS {
        let (value, after) = rest.split_at_checked(length(*kind, rest))?;
        if *name == wanted {
            return Some(value);
        }
        rest = after;
    }
    None
}

fn parse(text: &str) -> Vec<(&str, &str)> {
    let fields = text.split(';').filter(|field| !field.is_empty());
    fields.map(|field| field.split_once(':').unwrap_or_else(|| panic!("not FIELD:VALUE: {field}"))).collect()
}
