//! Reading all of a hash map that has records by number, many at a call.

use std::{
    os::fd::{AsFd as _, AsRawFd as _},
    ptr,
};

use libbpf_rs::{MapCore as _, MapMut};
use libbpf_sys::bpf_map_batch_opts;
use rustix::io::Errno;

use crate::{error::Error, read::Plain};

/// How many are read at a call, at first.
const AT_ONCE: usize = 64;

/// Calls `each` with every record. One that is made or deleted meanwhile may be among them or not.
pub(crate) fn each_record<T: Plain>(map: &MapMut<'_>, each: &mut dyn FnMut(u64, &T)) -> Result<(), Error> {
    if map.key_size() as usize != size_of::<u64>() || map.value_size() as usize != size_of::<T>() {
        return Err(Error::system("read a BPF map", "its records are others"));
    }
    let options = bpf_map_batch_opts { sz: size_of::<bpf_map_batch_opts>() as _, elem_flags: 0, flags: 0 };
    let mut room = AT_ONCE;
    let (mut keys, mut records) = (vec![0_u64; room], vec![T::default(); room]);
    // Where the next call goes on: a bucket's number.
    let mut place: Option<u32> = None;
    loop {
        let mut next = 0_u32;
        let mut count = room as u32;
        let from = place.as_mut().map_or(ptr::null_mut(), |place| ptr::from_mut(place).cast());
        // SAFETY: both buffers hold `count` keys and values of the map's sizes, which may have any bytes; a place is an u32.
        let rc = unsafe {
            libbpf_sys::bpf_map_lookup_batch(
                map.as_fd().as_raw_fd(),
                from,
                ptr::from_mut(&mut next).cast(),
                keys.as_mut_ptr().cast(),
                records.as_mut_ptr().cast(),
                &raw mut count,
                &raw const options,
            )
        };
        let ended = match (rc < 0).then(|| Errno::from_raw_os_error(-rc)) {
            None => false,
            Some(Errno::NOENT) => true,
            // One bucket has more than there is room for.
            Some(Errno::NOSPC) => {
                room *= 2;
                keys.resize(room, 0);
                records.resize(room, T::default());
                continue;
            }
            Some(errno) => return Err(Error::system("read a BPF map", errno)),
        };
        for (key, record) in keys.iter().zip(&records).take(count as usize) {
            each(*key, record);
        }
        if ended {
            return Ok(());
        }
        place = Some(next);
    }
}
