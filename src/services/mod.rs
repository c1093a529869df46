//! Work in the background. Each service is a plain object with a `step` that does a bounded piece
//! of it, so that a thread ([`keeper`]) and the simulator drive the same code.

pub mod alerts;
pub mod inspect;
pub mod keeper;
pub mod pace;
pub mod reclaim;
pub mod resync;
pub mod scrub;
pub mod verify;

pub use alerts::{Alert, SpaceLimit, Thresholds, Watch};
pub use inspect::Inspector;
pub use keeper::Keeper;
pub use pace::Pace;
pub use reclaim::Reclaim;
pub use resync::Resync;
pub use scrub::{ScrubOptions, Scrubber};
pub use verify::{Finding, Verifier, VerifyReport};
