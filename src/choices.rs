//! Enums whose values have names, in configuration files and in what is written.

/// An enum that [`choices!`] declares.
pub trait Choice: Copy + 'static {
    const ALL: &'static [Self];
    const NAMES: &'static [&'static str];

    fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().position(|known| *known == name).map(|at| Self::ALL[at])
    }
}

/// `choices! { pub enum Pooling { Cls = "cls", Mean = "mean" } }`: the values, and the names they have in a file.
macro_rules! choices {
    ($(#[doc = $about:literal])* pub enum $Enum:ident { $($(#[doc = $doc:literal])* $Value:ident = $name:literal),* $(,)? }) => {
        $(#[doc = $about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        pub enum $Enum {
            $($(#[doc = $doc])* #[serde(rename = $name)] $Value,)*
        }

        impl $Enum {
            pub fn name(self) -> &'static str {
                <Self as $crate::choices::Choice>::NAMES[self as usize]
            }
        }

        impl $crate::choices::Choice for $Enum {
            const ALL: &'static [Self] = &[$(Self::$Value),*];
            const NAMES: &'static [&'static str] = &[$($name),*];
        }
    };
}

pub(crate) use choices;
