//! The attributes of the scrub on the root: what it does, for people and for programs, and the one
//! to write orders to.

use serde::Serialize;

use crate::format::text;
use crate::pool::status::ScrubStatus;
use crate::pool::{ScrubOrder, ScrubRefusal};

use super::control::report_failed;
use super::error::{Result, VfsError};
use super::filesystem::Vfs;

/// Version of the attribute's JSON: fields may be added to one, never renamed.
const SCHEMA: u32 = 1;
/// What the attribute for orders reads as.
pub(super) const ORDERS: &[u8] = b"start [rate=MB/s] | pause | resume [rate=MB/s] | cancel\n";

#[derive(Serialize)]
struct Report {
    schema: u32,
    #[serde(flatten)]
    scrub: ScrubStatus,
}

impl Vfs {
    /// Takes an order for the scrub, from somebody who may give one.
    pub(super) fn order_scrub(&self, order: &[u8]) -> Result<()> {
        let order = std::str::from_utf8(order).ok().and_then(ScrubOrder::parse);
        let order = order.ok_or(VfsError::Invalid)?;
        let ordered = self.pool.scrub().order(order, self.pool.now());
        ordered.map_err(|refusal| match refusal {
            ScrubRefusal::Running => VfsError::Busy,
            ScrubRefusal::Idle => VfsError::NoData,
        })
    }

    pub(super) fn scrub_json(&self) -> Result<Vec<u8>> {
        let report = Report {
            schema: SCHEMA,
            scrub: self.pool.scrub().status().unwrap_or_default(),
        };
        let value = serde_json::to_value(report).map_err(report_failed)?;
        Ok(format!("{value:#}\n").into_bytes())
    }

    pub(super) fn scrub_text(&self) -> Vec<u8> {
        render(&self.pool.scrub().status().unwrap_or_default()).into_bytes()
    }
}

fn render(scrub: &ScrubStatus) -> String {
    let none = || "-".to_owned();
    let size = |bytes| format!("{bytes} ({})", text::size(bytes));
    let started = (scrub.started != 0).then(|| text::utc(scrub.started));
    let fields = [
        ("state", scrub.state.name().to_owned()),
        ("started", started.unwrap_or_else(none)),
        ("finished", scrub.finished.map_or_else(none, text::utc)),
        ("bytes_done", size(scrub.bytes_done)),
        ("bytes_total", size(scrub.bytes_total)),
        ("percent", scrub.percent.to_string()),
        ("rate", scrub.rate_bytes_per_s.map_or_else(none, text::rate)),
        ("eta", scrub.eta_s.map_or_else(none, text::span)),
        ("errors_found", scrub.errors_found.to_string()),
        ("repaired", scrub.repaired.to_string()),
        ("unrepairable", scrub.unrepairable.to_string()),
    ];
    fields
        .iter()
        .map(|(name, value)| format!("{name}={value}\n"))
        .collect()
}
