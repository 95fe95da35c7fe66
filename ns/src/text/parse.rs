//! Reads namespace files, with nom. An error tells where the text stops being one, and what would have been right
//! there.

use nom::bytes::complete::take_while1;
use nom::character::complete::{char, none_of, space0, space1};
use nom::combinator::{map, opt, recognize};
use nom::multi::{fold_many1, many0_count, separated_list1};
use nom::sequence::{delimited, preceded};
use nom::{IResult, Parser};

use super::{Flags, Line, MAX_BYTES, is_server};

/// Why a text is no namespace file.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("line {line}, column {column}: expected {expected}")]
pub struct ParseError {
    /// The line, from 1.
    pub line: usize,
    /// The column in bytes, from 1.
    pub column: usize,
    /// What would have been right there.
    pub expected: String,
}

/// What a variable stands for; `None` for one that is not set.
pub type Variables<'a> = dyn Fn(&str) -> Option<String> + Send + Sync + 'a;

/// `bytes` as the text of a namespace file. Errors: it is longer than [`MAX_BYTES`], or no text.
pub fn checked(bytes: &[u8]) -> Result<&str, ParseError> {
    let (text, refused) = match std::str::from_utf8(bytes) {
        _ if bytes.len() > MAX_BYTES => (&bytes[..MAX_BYTES], Some("the end: it may have 8 MiB")),
        Err(err) => (&bytes[..err.valid_up_to()], Some("text in UTF-8")),
        Ok(text) => match text.find('\0') {
            Some(at) => (&bytes[..at], Some("text, not a NUL")),
            None => return Ok(text),
        },
    };
    let line = text.iter().filter(|byte| **byte == b'\n').count() + 1;
    let column = text.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
    Err(ParseError { line, column, expected: refused.unwrap_or_default().into() })
}

/// The lines of `text`, at most `most`; a variable that is not set is refused.
pub fn parse(text: &str, most: usize, variable: &Variables<'_>) -> Result<Vec<Line>, ParseError> {
    Ok(parse_numbered(text, most, variable)?.into_iter().map(|(_, line)| line).collect())
}

/// The same, each with the number, from 1, of where it begins.
pub fn parse_numbered(text: &str, most: usize, variable: &Variables<'_>) -> Result<Vec<(usize, Line)>, ParseError> {
    let text = checked(text.as_bytes())?;
    let mut lines = Vec::new();
    for (number, line) in logical_lines(text) {
        let fail = |(at, expected): (&str, String)| error(number, line, at, expected);
        if lines.len() == most {
            return Err(fail((line, format!("the end: it may have {most} lines"))));
        }
        let words = words(line).map_err(fail)?;
        if let Some(line) = command(line, &words, variable).map_err(fail)? {
            lines.push((number, line));
        }
    }
    Ok(lines)
}

/// The lines that say something, each with its number; a quoted line end does not end a line.
fn logical_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut rest = text;
    let mut number = 1;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let comment = rest.trim_start_matches([' ', '\t']).starts_with('#');
            let mut quoted = false;
            let end = rest.char_indices().find(|(_, c)| {
                quoted ^= *c == '\'' && !comment;
                *c == '\n' && !quoted
            });
            let (line, after) = end.map_or((rest, ""), |(at, _)| (&rest[..at], &rest[at + 1..]));
            let this = number;
            number += line.matches('\n').count() + 1;
            rest = after;
            if !comment && !line.trim().is_empty() {
                return Some((this, line));
            }
        }
        None
    })
}

fn error(number: usize, line: &str, at: &str, expected: String) -> ParseError {
    let before = &line[..line.len() - at.len()];
    let line = number + before.matches('\n').count();
    let column = before.len() - before.rfind('\n').map_or(0, |at| at + 1) + 1;
    ParseError { line, column, expected }
}

/// What a line says, or where it is wrong and what was expected there.
fn command<'a>(line: &'a str, words: &[Word<'a>], variable: &Variables<'_>) -> Result<Option<Line>, (&'a str, String)> {
    let Some((verb, arguments)) = words.split_first() else { return Ok(None) };
    let expand = |word: &Word<'a>| {
        word.expand(variable).map_err(|name| (word.at, format!("a variable that is set, not ${name}")))
    };
    let name = expand(verb)?;
    let (usage, letters, counts) = match name.as_str() {
        "mount" => ("mount [-abcCmqw] server old [spec]", "abcCmqw", 2..=3),
        "import" => ("import [-abcCmqw] server [spec] old", "abcCmqw", 2..=3),
        "bind" => ("bind [-abcCmqw] new old", "abcCmqw", 2..=2),
        "unmount" => ("unmount [-q] [new] old", "q", 1..=2),
        "cd" => ("cd dir", "", 1..=1),
        "clear" => ("clear", "", 0..=0),
        "." => (". [-q] file", "q", 1..=1),
        _ => return Err((verb.at, format!("mount, bind, unmount, import, cd, clear or `.`, not {name}"))),
    };
    // In quotes it is no flag.
    let (flagged, arguments) = arguments.split_at(arguments.iter().take_while(|word| word.at.starts_with('-')).count());
    let mut flags = Flags::default();
    for word in flagged {
        set(&mut flags, &expand(word)?, letters).map_err(|expected| (word.at, expected))?;
    }
    if arguments.len() > *counts.end() {
        return Err((arguments[*counts.end()].at, format!("the end of the line: {usage}")));
    }
    if arguments.len() < *counts.start() {
        let end = line.trim_end();
        return Err((&line[end.len()..], format!("more: {usage}")));
    }
    let mut words = arguments.iter().map(expand).collect::<Result<Vec<_>, _>>()?.into_iter();
    let count = words.len();
    let mut word = || words.next().unwrap_or_default();
    Ok(Some(match name.as_str() {
        "mount" => Line::Mount { flags, server: word(), old: word(), spec: word() },
        "import" => {
            let (server, spec) = (word(), word());
            let old = if count == 3 { word() } else { spec.clone() };
            Line::Mount { flags, server, old, spec }
        }
        "bind" => match word() {
            server if is_server(&server) => Line::Mount { flags, server, old: word(), spec: String::new() },
            new => Line::Bind { flags, new, old: word() },
        },
        "unmount" => {
            let new = (count == 2).then(&mut word);
            Line::Unmount { new, old: word(), quiet: flags.quiet }
        }
        "cd" => Line::Cd { dir: word() },
        "clear" => Line::Clear,
        _ => Line::Include { path: word(), quiet: flags.quiet },
    }))
}

/// Sets the flags that `text` has, of those that are `known`.
fn set(flags: &mut Flags, text: &str, known: &str) -> Result<(), String> {
    for letter in text.chars().skip(1) {
        match letter {
            _ if known.is_empty() => return Err(format!("no flag, not {text}")),
            _ if !known.contains(letter) => return Err(format!("a flag of -{known}, not {letter}")),
            'a' => flags.after = true,
            'b' => flags.before = true,
            'c' => flags.create = true,
            'C' => flags.cache = true,
            'm' => flags.merge = true,
            'w' => flags.marks = true,
            _ => flags.quiet = true,
        }
    }
    if flags.before && flags.after { Err("-a or -b, not both".into()) } else { Ok(()) }
}

/// A word, and the rest of its line from where it begins.
struct Word<'a> {
    at: &'a str,
    parts: Vec<Part<'a>>,
}

enum Part<'a> {
    Text(String),
    Variable(&'a str),
}

impl<'a> Word<'a> {
    fn expand(&self, variable: &Variables<'_>) -> Result<String, &'a str> {
        let part = |part: &Part<'a>| match part {
            Part::Text(text) => Ok(text.clone()),
            Part::Variable(name) => variable(name).ok_or(*name),
        };
        self.parts.iter().map(part).collect()
    }
}

/// The words of a line, or where none can be read.
fn words(line: &str) -> Result<Vec<Word<'_>>, (&str, String)> {
    let parsed: IResult<&str, Vec<Word<'_>>> =
        delimited(space0, separated_list1(space1, word), (space0, opt(char('\r')))).parse(line);
    let rest = match parsed {
        Ok(("", words)) => return Ok(words),
        Ok((rest, _)) => rest,
        Err(_) => line,
    };
    let rest = rest.trim_start_matches([' ', '\t']);
    let expected = match rest.chars().next() {
        Some('\'') => "a quote at the end of this".to_string(),
        Some('$') => "the name of a variable after $".to_string(),
        _ => "a word".to_string(),
    };
    Err((rest, expected))
}

fn word(at: &str) -> IResult<&str, Word<'_>> {
    let (rest, parts) = fold_many1(part, Vec::new, |mut parts, part| {
        parts.push(part);
        parts
    })
    .parse(at)?;
    Ok((rest, Word { at, parts }))
}

fn part(input: &str) -> IResult<&str, Part<'_>> {
    let plain = |c: char| !c.is_whitespace() && c != '\'' && c != '$';
    let name = |c: char| !c.is_whitespace() && !"/$'.!".contains(c);
    let quote = map(nom::bytes::complete::tag("''"), |_| '\'');
    let in_quotes = recognize(many0_count(nom::branch::alt((none_of("'"), quote))));
    nom::branch::alt((
        map(delimited(char('\''), in_quotes, char('\'')), |text: &str| Part::Text(text.replace("''", "'"))),
        map(preceded(char('$'), take_while1(name)), Part::Variable),
        map(take_while1(plain), |text: &str| Part::Text(text.into())),
    ))
    .parse(input)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::text::PEER_LINES;

    fn none(_: &str) -> Option<String> {
        None
    }

    fn mount(flags: Flags, server: &str, old: &str, spec: &str) -> Line {
        Line::Mount { flags, server: server.into(), old: old.into(), spec: spec.into() }
    }

    #[test]
    fn a_namespace_file_is_read() {
        let text =
            "# mine\n\nmount -bc '#tmp' /tmp\n  mount tls!pi!1 /n/'my pi' fs # x\nbind -a $home/bin /bin\ncd /\n";
        let text = text.replace(" # x", "");
        let home = |name: &str| (name == "home").then(|| "/home/u".to_string());
        let flags = Flags { before: true, create: true, ..Flags::default() };
        let bind = Flags { after: true, ..Flags::default() };
        let expected = [
            mount(flags, "#tmp", "/tmp", ""),
            mount(Flags::default(), "tls!pi!1", "/n/my pi", "fs"),
            Line::Bind { flags: bind, new: "/home/u/bin".into(), old: "/bin".into() },
            Line::Cd { dir: "/".into() },
        ];
        assert_eq!(parse(&text, PEER_LINES, &home).unwrap(), expected);
        // As Plan 9's bind takes a kernel's device.
        let bound = "bind -c local!/a /x\nbind '#grid' /n\nbind ./a!b /c\n";
        let create = Flags { create: true, ..Flags::default() };
        let expected = [
            mount(create, "local!/a", "/x", ""),
            mount(Flags::default(), "#grid", "/n", ""),
            Line::Bind { flags: Flags::default(), new: "./a!b".into(), old: "/c".into() },
        ];
        assert_eq!(parse(bound, PEER_LINES, &home).unwrap(), expected);
        assert_eq!(Line::Bind { flags: create, new: "a!b".into(), old: "/c".into() }.to_string(), "bind -c ./a!b /c");
    }

    #[test]
    fn an_error_says_where_and_what_was_expected() {
        let at = |text: &str| {
            let err = parse(text, PEER_LINES, &none).unwrap_err();
            (err.line, err.column, err.expected)
        };
        let commands = "mount, bind, unmount, import, cd, clear or `.`, not mout";
        assert_eq!(at("mount a /\n  mout b /\n"), (2, 3, commands.into()));
        assert_eq!(at("bind $x /"), (1, 6, "a variable that is set, not $x".into()));
        assert_eq!(at("\n bind -ab a b"), (2, 7, "-a or -b, not both".into()));
        assert_eq!(at("bind -c -b -a a b"), (1, 12, "-a or -b, not both".into()));
        assert_eq!(at("bind -ax a b"), (1, 6, "a flag of -abcCmqw, not x".into()));
        assert_eq!(at("cd -a a"), (1, 4, "no flag, not -a".into()));
        assert_eq!(at("mount a  "), (1, 8, "more: mount [-abcCmqw] server old [spec]".into()));
        assert_eq!(at("clear all"), (1, 7, "the end of the line: clear".into()));
        assert_eq!(at("cd 'a"), (1, 4, "a quote at the end of this".into()));
        assert_eq!(at("bind /a\n#\nbind 'a\nb' $ c"), (1, 8, "more: bind [-abcCmqw] new old".into()));
        assert_eq!(at("bind 'a\nb' $ c"), (2, 4, "the name of a variable after $".into()));
        assert_eq!(at("cd /\ncd /a\0b\n"), (2, 6, "text, not a NUL".into()));
    }

    #[test]
    fn what_may_fail_what_is_included_and_what_begins_anew_are_read_and_printed() {
        let quiet = Flags { quiet: true, ..Flags::default() };
        assert_eq!(parse("bind -b -c /a /b", PEER_LINES, &none), parse("bind -bc /a /b", PEER_LINES, &none));
        let text =
            "import pi /lib\nimport -q pi fs/home /h\nunmount -q /a\nclear\n. /lib/ns\n. -q /ns\nunmount -q a /b\n";
        let lines = parse(text, PEER_LINES, &none).unwrap();
        let unmount =
            |new: Option<&str>, old: &str| Line::Unmount { new: new.map(str::to_string), old: old.into(), quiet: true };
        let expected = [
            mount(Flags::default(), "pi", "/lib", "/lib"),
            mount(quiet, "pi", "/h", "fs/home"),
            unmount(None, "/a"),
            Line::Clear,
            Line::Include { path: "/lib/ns".into(), quiet: false },
            Line::Include { path: "/ns".into(), quiet: true },
            unmount(Some("a"), "/b"),
        ];
        assert_eq!(lines, expected);
        let printed: String = lines.iter().map(|line| format!("{line}\n")).collect();
        assert_eq!(parse(&printed, PEER_LINES, &none).unwrap(), expected);
    }

    #[test]
    fn a_text_that_is_too_long_or_none_says_so() {
        let long = "cd /a\n".repeat((10 << 20) / 6);
        let err = parse(&long, usize::MAX, &none).unwrap_err();
        assert_eq!((err.line, err.expected.as_str()), (MAX_BYTES / 6 + 1, "the end: it may have 8 MiB"));
        let err = parse("cd /\ncd /\ncd /\n", 2, &none).unwrap_err();
        assert_eq!((err.line, err.column, err.expected.as_str()), (3, 1, "the end: it may have 2 lines"));
        let err = checked(b"cd /\n\xff\xfe").unwrap_err();
        assert_eq!((err.line, err.column, err.expected.as_str()), (2, 1, "text in UTF-8"));
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back_the_same(words in prop::collection::vec("[ -~\n\u{e9}]{1,8}", 3), bits in 0u8..4) {
            let flags = Flags { before: bits & 1 != 0, after: bits == 2, create: bits & 2 != 0, cache: false, merge: bits == 2, marks: bits == 1, quiet: bits == 3 };
            let flags = Flags { after: flags.after && !flags.before, ..flags };
            let lines = [
                mount(flags, &words[0], &words[1], &words[2]),
                Line::Bind { flags, new: format!("/{}", words[1]), old: words[2].clone() },
                Line::Unmount { new: Some(words[0].clone()), old: words[2].clone(), quiet: bits == 1 },
            ];
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            prop_assert_eq!(parse(&text, PEER_LINES, &none).unwrap(), lines);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            let _ = parse(&text, PEER_LINES, &|name| Some(name.to_string()));
        }
    }
}
