//! What the address of a page says after its `?`.

use std::str::FromStr;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use percent_encoding::percent_decode_str;

use super::answer::Failure;

/// Names and values, in the order in which they come.
#[derive(Debug, Default)]
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    /// Takes apart what a form sends (application/x-www-form-urlencoded); what is no UTF-8 is replaced.
    fn parse(query: &str) -> Self {
        let text = |part: &str| {
            let part = part.replace('+', " ");
            percent_decode_str(&part).decode_utf8_lossy().into_owned()
        };
        let pair = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (text(name), text(value))
        };
        Self(query.split('&').filter(|part| !part.is_empty()).map(pair).collect())
    }

    /// The first value of that name that is not empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let mut values = self.0.iter().filter(|(of, value)| of == name && !value.is_empty());
        values.next().map(|(_, value)| value.as_str())
    }

    /// Whether it is there, with or without a value.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(of, _)| of == name)
    }

    /// The first value of that name as a number.
    ///
    /// # Errors
    ///
    /// It is none.
    pub(super) fn number<T: FromStr>(&self, name: &str) -> Result<Option<T>, Failure> {
        let parse = |value: &str| {
            value.parse().map_err(|_| {
                Failure::bad(format!("{name}: {value:.60?}; expected a number in its range"))
            })
        };
        self.get(name).map(parse).transpose()
    }
}

impl<S: Sync> FromRequestParts<S> for Params {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Self::parse(parts.uri.query().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_taken_apart_as_it_was_filled_in() {
        let params = Params::parse("q=a+b%2B%3Cx%3E&&label=job%3Dweb&offset=-1&bad=%ff%zz&state=");

        assert_eq!(params.get("q"), Some("a b+<x>"));
        assert_eq!(params.get("label"), Some("job=web"));
        assert_eq!(params.get("bad"), Some("\u{fffd}%zz"));
        assert_eq!((params.get("state"), params.has("state")), (None, true));
        assert_eq!(params.number::<i64>("offset").unwrap(), Some(-1));
        assert!(params.number::<u32>("offset").is_err());
        assert_eq!(params.number::<u32>("none").unwrap(), None);
    }
}
