//! Addresses of pages.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// All but what is never anything else (RFC 3986, 2.3).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A name as one part of an address, or a value of its query.
pub(super) fn part(name: &str) -> String {
    utf8_percent_encode(name, ESCAPED).to_string()
}

/// The address of `kind` with these parts.
pub(super) fn of(kind: &str, parts: &[&str]) -> String {
    let mut url = format!("/{kind}");
    for name in parts {
        url.push('/');
        url.push_str(&part(name));
    }
    url
}

/// The address of `kind` for a path in the sandbox of a task; an empty one is the sandbox itself.
pub(super) fn of_path(kind: &str, id: &str, path: &str) -> String {
    let components = path.split('/').filter(|name| !name.is_empty());
    of(kind, &std::iter::once(id).chain(components).collect::<Vec<_>>())
}

/// `url` with these names and values after it.
pub(super) fn with(url: &str, params: &[(&str, &str)]) -> String {
    let mut url = url.to_owned();
    for (at, (name, value)) in params.iter().enumerate() {
        url.push(if at == 0 { '?' } else { '&' });
        url.push_str(name);
        url.push('=');
        url.push_str(&part(value));
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Attack 16: a name cannot be taken for more than one part, or for the end of the address.
    #[test]
    fn a_name_is_one_part_of_an_address_whatever_it_is() {
        assert_eq!(
            of("process", &["a?b#c", "\"><x>%2e é"]),
            "/process/a%3Fb%23c/%22%3E%3Cx%3E%252e%20%C3%A9"
        );
        assert_eq!(of_path("browse", "t", "a b/c"), "/browse/t/a%20b/c");
        assert_eq!(of_path("browse", "t", ""), "/browse/t");
        assert_eq!(with("/", &[("q", "a&b=c"), ("state", "active")]), "/?q=a%26b%3Dc&state=active");
    }
}
