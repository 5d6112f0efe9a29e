//! How a table of a configuration file is declared: once, for its keys and for the struct that holds their values.
//!
//! ```text
//! table! {
//!     /// What the table is for.
//!     pub struct Clip = CLIP {
//!         /// What the key does: rustdoc of the field, and the key's line in docs/configuration.md.
//!         norm: f64 = 1.0 in Bounds::NON_NEGATIVE, resumable;
//!         ...
//!     }
//! }
//! ```
//!
//! A key is `NAME: TYPE = DEFAULT in KIND, RULES;`. The default is a TOML literal, or `required`, or `none` where the key
//! stays absent. `in KIND` (anything a [`Kind`] is made from: a range, bounds) is left out where the type alone tells it
//! ([`FieldType`]). Rules are the methods of [`Key`](super::keys::Key): `only(KEY, VALUES)`, `resumable`. A key without
//! documentation whose value is a table has that of the table.
//!
//! Behind the braces may follow `with fields { .. }` that no key sets, `with keys EXPRESSION;` of more keys, and
//! `later [..]`, names of keys of a later version.

use std::collections::BTreeMap;

use super::keys::{Kind, Section};
use crate::choices::Choice;

macro_rules! table {
    (
        $(#[doc = $about:literal])*
        pub struct $Struct:ident = $SECTION:ident {
            $(
                $(#[doc = $doc:literal])*
                $name:ident: $type:ty = $default:tt $(in $kind:expr)? $(, $rule:ident $(($($argument:expr),*))?)*;
            )*
        }
        $(with fields { $($field:tt)* })?
        $(with keys $more:expr;)?
        $(later [$($later:literal),*])?
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug, PartialEq, serde::Deserialize)]
        pub struct $Struct {
            $(
                $(#[doc = $doc])*
                pub $name: $type,
            )*
            $($($field)*)?
        }

        pub static $SECTION: $crate::config::keys::Section = $crate::config::keys::Section::new(
            concat!($($about),*),
            || {
                let keys = vec![
                    $(
                        $crate::config::keys::Key::new(
                            stringify!($name).trim_start_matches("r#"),
                            $crate::config::table::table!(@kind $type $(, $kind)?),
                            $crate::config::table::table!(@default $default),
                            concat!($($doc),*),
                        )
                        $(.$rule($($($argument),*)?))*,
                    )*
                ];
                $(let keys = [keys, $more].concat();)?
                keys
            },
            &[$($($later),*)?],
        );

        impl $crate::config::table::Table for $Struct {
            fn section() -> &'static $crate::config::keys::Section {
                &$SECTION
            }
        }

        impl $crate::config::table::FieldType for $Struct {
            fn kind() -> $crate::config::keys::Kind {
                $crate::config::keys::Kind::Section(&$SECTION)
            }
        }
    };
    (@kind $type:ty) => { <$type as $crate::config::table::FieldType>::kind() };
    (@kind $type:ty, $kind:expr) => { $crate::config::keys::Kind::from($kind) };
    (@default required) => { $crate::config::keys::Default::Required };
    (@default none) => { $crate::config::keys::Default::Absent };
    (@default $literal:tt) => { $crate::config::keys::Default::Is(stringify!($literal)) };
}

pub(crate) use table;

/// A struct that is declared as a table.
pub trait Table {
    fn section() -> &'static Section;
}

/// What the type of a field alone says of its key.
pub trait FieldType {
    fn kind() -> Kind;
}

impl<T: Choice> FieldType for T {
    fn kind() -> Kind {
        Kind::one_of(T::NAMES)
    }
}

impl FieldType for bool {
    fn kind() -> Kind {
        Kind::Bool
    }
}

impl FieldType for String {
    fn kind() -> Kind {
        Kind::Text
    }
}

impl<T: FieldType> FieldType for Option<T> {
    fn kind() -> Kind {
        T::kind()
    }
}

impl<T: FieldType> FieldType for Vec<T> {
    fn kind() -> Kind {
        Kind::list(T::kind())
    }
}

impl<T: Table> FieldType for BTreeMap<String, T> {
    fn kind() -> Kind {
        Kind::Sections(T::section())
    }
}
