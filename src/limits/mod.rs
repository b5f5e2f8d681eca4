//! What one connection, one address and one principal may use.
//!
//! | to find | look in |
//! |---|---|
//! | token buckets for rates | `bucket` |
//! | permits for a number of open things | `counter` |
//! | limits by address, as `http::listener` and `http::upgrade` ask for them | `addresses` |
//! | the processor time of a session | `charge` and `rate_limit` in `sync::session` |
//! | quotas of what is stored, and their refunds | `accounts` |
//! | permits for long work, which principals take in turn | [`turns`] |

mod accounts;
mod addresses;
mod bucket;
mod counter;
pub mod turns;

pub use self::{
    accounts::{Account, Charge, Quotas},
    addresses::{AddressLimit, Addresses, ConnectionSlot, SlotKind, limit_key},
    bucket::Bucket,
    counter::{Counter, Permit},
};
