//! Lists of numbers as the kernel writes them: `0-3,8` (cgroup-v2.rst, "Cpuset Interface Files").

use std::collections::BTreeSet;
use std::fmt;

/// A set of CPUs or memory nodes; not empty where a task file gave it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NumberList(BTreeSet<u32>);

/// Why a text is no list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// It is something else.
    #[error("is no list of numbers")]
    Malformed,
    /// A range ends before it begins.
    #[error("has a range that ends before it begins")]
    Backwards,
    /// A number is beyond what any kernel has.
    #[error("has a number above {0}")]
    TooLarge(u32),
}

impl NumberList {
    /// Reads numbers and ranges between commas, each at most `max`.
    ///
    /// # Errors
    ///
    /// [`ListError`].
    pub fn parse(text: &str, max: u32) -> Result<Self, ListError> {
        let mut numbers = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first, max)?, number(last, max)?);
            if first > last {
                return Err(ListError::Backwards);
            }
            numbers.extend(first..=last);
        }
        Ok(Self(numbers))
    }

    /// What is in both.
    pub fn intersection(&self, other: &Self) -> Self {
        Self(self.0.intersection(&other.0).copied().collect())
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// As the kernel writes it: ascending, with ranges where there are any.
impl fmt::Display for NumberList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.iter().copied().peekable();
        let mut separator = "";
        while let Some(first) = rest.next() {
            let mut last = first;
            while let Some(next) = rest.next_if(|&next| next == last + 1) {
                last = next;
            }
            write!(f, "{separator}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

fn number(text: &str, max: u32) -> Result<u32, ListError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ListError::Malformed);
    }
    let number = text.parse().ok().filter(|&number| number <= max);
    number.ok_or(ListError::TooLarge(max))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_list_is_read_and_written_as_the_kernel_writes_it() {
        for (text, written) in [
            ("0", "0"),
            ("0-3,8", "0-3,8"),
            ("8,1,0,2", "0-2,8"),
            ("1,1-1,0-1", "0-1"),
            ("63", "63"),
        ] {
            assert_eq!(NumberList::parse(text, 63).unwrap().to_string(), written, "{text}");
        }
    }

    #[test]
    fn what_is_no_list_is_refused_by_its_kind() {
        for text in ["", ",", "1,", "-1", "1-", "a", "0 - 1", "0x1", "+1", "0-3:1/2", "1--2"] {
            assert_eq!(NumberList::parse(text, 63), Err(ListError::Malformed), "{text}");
        }
        assert_eq!(NumberList::parse("3-1", 63), Err(ListError::Backwards));
        assert_eq!(NumberList::parse("0-64", 63), Err(ListError::TooLarge(63)));
        assert_eq!(NumberList::parse("99999999999999999999", 63), Err(ListError::TooLarge(63)));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(numbers in prop::collection::btree_set(0u32..100, 1..20)) {
            let list = NumberList(numbers);
            prop_assert_eq!(NumberList::parse(&list.to_string(), 99), Ok(list));
        }

        #[test]
        fn any_text_gives_an_answer(text in "[-0-9,: ]{0,20}") {
            let _ = NumberList::parse(&text, 8191);
        }
    }
}
