//! The subject of a certificate, as people write it (RFC 4514, in the order of the certificate), for the log.
//!
//! What is read here was signed by a CA that is trusted and parsed by webpki before; nothing is decided by it.

/// Tags of DER (ITU-T X.690).
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OID: u8 = 0x06;

/// Attributes that have short names: the DER of their OIDs (RFC 4519).
const SHORT: [(&[u8], &str); 7] = [
    (&[0x55, 4, 3], "CN"),
    (&[0x55, 4, 6], "C"),
    (&[0x55, 4, 7], "L"),
    (&[0x55, 4, 8], "ST"),
    (&[0x55, 4, 10], "O"),
    (&[0x55, 4, 11], "OU"),
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 1], "UID"),
];

/// Most characters of a subject that are told.
const MAX: usize = 256;

/// A subject, from the DER of its relative names, without the tag around them. What has no short name is left out; what
/// could be taken for something else in a log is escaped.
pub(super) fn text(mut names: &[u8]) -> String {
    let mut parts = Vec::new();
    while let Some((SET, mut set)) = take(&mut names) {
        while let Some((SEQUENCE, mut attribute)) = take(&mut set) {
            let (Some((OID, kind)), Some((_, value))) =
                (take(&mut attribute), take(&mut attribute))
            else {
                continue;
            };
            if let Some((_, short)) = SHORT.iter().find(|(oid, _)| *oid == kind) {
                parts.push(format!("{short}={}", escaped(&String::from_utf8_lossy(value))));
            }
        }
    }
    let text = parts.join(",");
    match text.char_indices().nth(MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// The separators of a subject, what cannot be seen, and what changes how a line is shown.
fn escaped(value: &str) -> String {
    let mut text = String::new();
    for c in value.chars() {
        match c {
            ',' | '=' | '+' | '"' | '\\' => text.extend(['\\', c]),
            c => text.extend(c.escape_debug()),
        }
    }
    text
}

/// The next element of DER: its tag and what is in it; `None` at the end, and where it is none.
fn take<'a>(der: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => (usize::from(*rest.first()?), &rest[1..]),
        0x82 => (usize::from(u16::from_be_bytes(*rest.first_chunk()?)), &rest[2..]),
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    *der = rest;
    Some((tag, content))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(tag: u8, content: &[u8]) -> Vec<u8> {
        [&[tag, u8::try_from(content.len()).unwrap()], content].concat()
    }

    fn name(oid: &[u8], value: &str) -> Vec<u8> {
        let attribute = [element(OID, oid), element(0x0c, value.as_bytes())].concat();
        element(SET, &element(SEQUENCE, &attribute))
    }

    #[test]
    fn a_subject_is_told_as_people_write_it() {
        let names = [name(SHORT[4].0, "Example"), name(SHORT[0].0, "ops")].concat();

        assert_eq!(text(&names), "O=Example,CN=ops");
    }

    /// attack 47: nothing that a CA lets somebody put there forges a second name or a second line.
    #[test]
    fn a_subject_cannot_forge_another_or_a_line_of_the_log() {
        let names = name(SHORT[0].0, "a,CN=root\n\u{202e}\"");

        assert_eq!(text(&names), r#"CN=a\,CN\=root\n\u{202e}\""#);
    }

    /// Whatever the bytes, it ends, and does not panic.
    #[test]
    fn what_is_no_der_is_told_as_far_as_it_goes() {
        let whole = [name(SHORT[0].0, "ops"), name(SHORT[4].0, "Example")].concat();
        for length in 0..whole.len() {
            let told = text(&whole[..length]);
            assert!(told.is_empty() || told == "CN=ops", "{told}");
        }
        assert_eq!(text(&[SET, 0x83, 1, 1, 1, 0]), "");
        assert_eq!(text(&[SET, 0x82, 0xff]), "");
        assert_eq!(text(&[SET, 0x81]), "");
    }
}
