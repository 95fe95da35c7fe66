//! Words as a shell user types them: the grammar of `ctl` commands, and of `args` and `env` written by echo.
//!
//! Blanks separate words; single quotes keep anything together, newlines included, and two of them inside a quoted
//! part mean one (as in rc and in namespace files); a newline outside quotes ends a line. Called by the ctl parser,
//! the session's files and the `rcpu` library, which prints with [`quote`] what [`lines`] reads back. Any bytes but
//! NUL may stand in a word, since file names may have them.

use nom::branch::alt;
use nom::bytes::complete::{tag, take_till1, take_while};
use nom::character::complete::char;
use nom::combinator::{all_consuming, map, value};
use nom::multi::{fold_many0, fold_many1, separated_list0};
use nom::sequence::{delimited, preceded, terminated};
use nom::{IResult, Parser};

/// The lines of `text`, each as its words; lines without a word are left out. `None`: a quote is not closed.
pub(crate) fn lines(text: &[u8]) -> Option<Vec<Vec<Vec<u8>>>> {
    let parsed: IResult<&[u8], _> = all_consuming(separated_list0(char('\n'), line)).parse(text);
    let (_, mut lines) = parsed.ok()?;
    lines.retain(|words: &Vec<_>| !words.is_empty());
    Some(lines)
}

/// Appends `word` to `out`, quoted if it has to be.
pub(crate) fn quote(word: &[u8], out: &mut Vec<u8>) {
    if !word.is_empty() && !word.iter().any(|&byte| is_special(byte)) {
        return out.extend_from_slice(word);
    }
    out.push(b'\'');
    for &byte in word {
        out.push(byte);
        if byte == b'\'' {
            out.push(byte);
        }
    }
    out.push(b'\'');
}

fn line(input: &[u8]) -> IResult<&[u8], Vec<Vec<u8>>> {
    let words = fold_many0(preceded(blanks, word), Vec::new, |mut words, word| {
        words.push(word);
        words
    });
    terminated(words, blanks).parse(input)
}

fn word(input: &[u8]) -> IResult<&[u8], Vec<u8>> {
    fold_many1(alt((quoted, plain)), Vec::new, |mut word, part| {
        word.extend_from_slice(&part);
        word
    })
    .parse(input)
}

fn plain(input: &[u8]) -> IResult<&[u8], Vec<u8>> {
    map(take_till1(is_special), <[u8]>::to_vec).parse(input)
}

fn quoted(input: &[u8]) -> IResult<&[u8], Vec<u8>> {
    let doubled = value(&b"'"[..], tag("''"));
    let part = alt((doubled, take_till1(|byte| byte == b'\'')));
    let inside = fold_many0(part, Vec::new, |mut all: Vec<u8>, part: &[u8]| {
        all.extend_from_slice(part);
        all
    });
    delimited(char('\''), inside, char('\'')).parse(input)
}

fn blanks(input: &[u8]) -> IResult<&[u8], &[u8]> {
    take_while(is_blank).parse(input)
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r')
}

fn is_special(byte: u8) -> bool {
    is_blank(byte) || matches!(byte, b'\n' | b'\'')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn blanks_separate_words_and_quotes_keep_them_together() {
        let lines = lines(b"  a 'b c'd\t'it''s'\n\n''\n").unwrap();
        assert_eq!(lines, [vec![b"a".to_vec(), b"b cd".to_vec(), b"it's".to_vec()], vec![b"".to_vec()]]);
    }

    #[test]
    fn an_open_quote_is_refused() {
        assert_eq!(lines(b"a 'b"), None);
    }

    proptest! {
        #[test]
        fn what_quote_prints_reads_back(words in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 1..5)) {
            let mut text = Vec::new();
            for word in &words {
                quote(word, &mut text);
                text.push(b' ');
            }
            prop_assert_eq!(lines(&text).unwrap(), vec![words]);
        }
    }
}
