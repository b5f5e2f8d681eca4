//! What one connection, one address and one principal may use: rates as token buckets, and who is counted.
//!
//! governor, the crate for such limits, fixes its quota when a limiter is made, so that a reload could not change it, and
//! takes nothing that is larger than its burst, as a message may be. A bucket here is two numbers, and is told the rate.
//! [`turns`] are permits for long work, which principals take in turn.

mod accounts;
mod addresses;
mod bucket;
mod counter;
pub mod turns;

pub use self::{
    accounts::{Account, Charge, Principals},
    addresses::{AddressLimit, Addresses, Kind, Place, counted_as},
    bucket::Bucket,
    counter::{Counter, Permit},
};
