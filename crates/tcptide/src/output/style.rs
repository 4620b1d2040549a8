//! Colours by what they mean. Whether there are any is decided once, in [`writer`](super::writer).
use std::borrow::Cow;

/// What a colour tells the reader. No meaning is in the colour alone: the text says it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Names what stands below or beside it.
    Header,
    /// As it should be.
    Good,
    /// Worth a look.
    Warn,
    /// Broken.
    Bad,
    /// Of less interest than the rest.
    Dim,
}

impl Role {
    /// Parameters of the terminal's "select graphic rendition" (ECMA-48). Only the eight colours that
    /// every terminal maps to its own theme.
    const fn sgr(self) -> &'static str {
        match self {
            Self::Header => "1",
            Self::Good => "32",
            Self::Warn => "33",
            Self::Bad => "31",
            Self::Dim => "2",
        }
    }
}

/// Paints text, or leaves it as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Palette {
    /// Whether there are colours.
    pub(crate) colour: bool,
}

impl Palette {
    /// No colours.
    pub(crate) const PLAIN: Self = Self { colour: false };

    /// The text in the colour of its role.
    pub(crate) fn paint(self, role: Option<Role>, text: &str) -> Cow<'_, str> {
        match role {
            Some(role) if self.colour => format!("\x1b[{}m{text}\x1b[0m", role.sgr()).into(),
            _ => text.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paints_only_roles_and_only_with_colours() {
        let colours = Palette { colour: true };
        assert_eq!(colours.paint(Some(Role::Bad), "lost"), "\x1b[31mlost\x1b[0m");
        assert_eq!(colours.paint(None, "lost"), "lost");
        assert_eq!(Palette::PLAIN.paint(Some(Role::Bad), "lost"), "lost");
    }
}
