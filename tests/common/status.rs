//! `mendfs status --json`, and the few figures in it that tests ask for.

use std::ffi::OsStr;
use std::time::Duration;

use serde_json::Value;

use super::{mendfs, text, wait_for};

/// One answer of `mendfs status --json`.
#[derive(Debug)]
pub(crate) struct Status(pub(crate) Value);

impl Status {
    /// Status of a mounted pool.
    pub(crate) fn of(target: &OsStr) -> Status {
        let output = mendfs([OsStr::new("status"), OsStr::new("--json"), target]);
        // Exit code 1 says that the pool is not healthy; the status is printed all the same.
        assert!(
            matches!(output.status.code(), Some(0 | 1)),
            "status: {}",
            text(&output)
        );
        let value = serde_json::from_slice(&output.stdout);
        Status(value.unwrap_or_else(|error| panic!("{error}: {}", text(&output))))
    }

    /// Sum of all numbers with this key, wherever they stand.
    pub(crate) fn sum(&self, key: &str) -> u64 {
        fn walk(value: &Value, key: &str) -> u64 {
            match value {
                Value::Object(map) => map
                    .iter()
                    .map(|(name, value)| match value.as_u64() {
                        Some(number) if name == key => number,
                        _ => walk(value, key),
                    })
                    .sum(),
                Value::Array(list) => list.iter().map(|value| walk(value, key)).sum(),
                _ => 0,
            }
        }
        walk(&self.0, key)
    }

    /// The whole answer as text.
    pub(crate) fn text(&self) -> String {
        self.0.to_string()
    }

    /// The states of the mirrors, in their order.
    pub(crate) fn mirror_states(&self) -> Vec<String> {
        let mirrors = self.0["mendfs"]["mirrors"].as_array().expect("mirrors");
        let state = |mirror: &Value| mirror["state"].as_str().expect("a state").to_owned();
        mirrors.iter().map(state).collect()
    }

    /// Bad copies that were made whole again.
    pub(crate) fn repaired(&self) -> u64 {
        self.sum("repaired")
    }

    /// Bad copies that no mirror could make whole.
    pub(crate) fn unrepairable(&self) -> u64 {
        self.sum("unrepairable")
    }

    /// Whether repairs, or a look around damage that was found, are still to be done.
    pub(crate) fn busy(&self) -> bool {
        self.sum("repairs_pending") > 0 || self.flag("inspecting")
    }

    fn flag(&self, key: &str) -> bool {
        self.text().contains(&format!("\"{key}\":true"))
    }
}

/// Waits until the mounted pool has no repair pending, and returns the status then.
pub(crate) fn wait_repaired(pool: &super::Pool) -> Status {
    wait_for("the repairs", Duration::from_secs(120), || {
        !pool.status().busy()
    });
    pool.status()
}
