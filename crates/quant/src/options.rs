//! Options that document themselves: one declaration gives the struct, its defaults, the reader that refuses unknown
//! keys, and the table that help and documentation print.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;

/// One option, as help prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OptionDoc {
    /// Its key in a recipe.
    pub name: &'static str,
    /// What it does.
    pub help: String,
    /// Its default, as JSON.
    pub default: String,
}

/// A struct of options made by [`options!`].
pub trait Options: Default + Clone + Serialize + DeserializeOwned + Send + 'static {
    /// Every option in declared order.
    fn docs() -> Vec<OptionDoc>;

    /// Reads options from the JSON object (or null) of a recipe. Keys that do not exist are errors that list those
    /// that do.
    fn from_json(value: &serde_json::Value) -> Result<Self, Error> {
        if value.is_null() {
            return Ok(Self::default());
        }
        serde_json::from_value(value.clone()).map_err(|e| Error::option(e.to_string()).caused_by(e))
    }
}

/// Declares a struct of documented options with defaults. See [`Options`].
macro_rules! options {
    ($(#[$meta:meta])* pub struct $name:ident {
        $($(#[doc = $help:expr])+ pub $field:ident: $ty:ty = $default:expr),* $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name { $($(#[doc = $help])+ pub $field: $ty),* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default),* }
            }
        }

        impl $crate::options::Options for $name {
            fn docs() -> Vec<$crate::options::OptionDoc> {
                let defaults = Self::default();
                let _ = &defaults;
                vec![$($crate::options::OptionDoc {
                    name: stringify!($field),
                    help: [$($help),+].map(str::trim).join(" "),
                    default: serde_json::to_string(&defaults.$field).unwrap_or_default(),
                }),*]
            }
        }
    };
}
pub(crate) use options;

#[cfg(test)]
mod tests {
    use super::Options;

    options! {
        /// Two of them.
        pub struct Two {
            /// How steep,
            /// at first.
            pub start: f32 = 2.5,
            /// A word.
            pub word: String = "x".to_owned(),
        }
    }

    #[test]
    fn options_document_themselves() {
        let docs = Two::docs();
        assert_eq!(
            (docs[0].name, docs[0].help.as_str(), docs[0].default.as_str()),
            ("start", "How steep, at first.", "2.5")
        );
        let read = Two::from_json(&serde_json::json!({"start": 1})).unwrap();
        assert_eq!(read, Two { start: 1.0, word: "x".into() });
        let error = Two::from_json(&serde_json::json!({"strat": 1})).unwrap_err().to_string();
        assert!(error.contains("unknown field `strat`") && error.contains("`start`"), "{error}");
    }
}
