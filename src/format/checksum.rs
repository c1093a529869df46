//! The checksum algorithms a pool can be made with. Only this file calls the checksum crates.

use sha2::Digest;

/// A checksum algorithm, chosen at mkfs and kept in the superblock and in every record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Algorithm {
    /// CRC-32 (IEEE 802.3), 4 bytes: the default, and so fast that it costs next to nothing.
    #[default]
    Crc32,
    /// XXH3, 8 bytes: not cryptographic, but 64 bits wide.
    Xxh3,
    /// BLAKE3, 32 bytes: cryptographic.
    Blake3,
    /// SHA-256 (FIPS 180-4), 32 bytes: cryptographic.
    Sha256,
}

impl Algorithm {
    /// Every algorithm, in the order in which help texts name them.
    pub const ALL: [Algorithm; 4] = [
        Algorithm::Crc32,
        Algorithm::Xxh3,
        Algorithm::Blake3,
        Algorithm::Sha256,
    ];

    /// Width of one checksum in bytes.
    pub const fn width(self) -> usize {
        match self {
            Algorithm::Crc32 => 4,
            Algorithm::Xxh3 => 8,
            Algorithm::Blake3 | Algorithm::Sha256 => 32,
        }
    }

    /// The name used on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Algorithm::Crc32 => "crc32",
            Algorithm::Xxh3 => "xxh3",
            Algorithm::Blake3 => "blake3",
            Algorithm::Sha256 => "sha256",
        }
    }

    /// The algorithm of that name, if there is one.
    pub fn from_name(name: &str) -> Option<Algorithm> {
        Algorithm::ALL
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
    }

    /// The number stored on disk.
    pub const fn id(self) -> u8 {
        match self {
            Algorithm::Crc32 => 1,
            Algorithm::Xxh3 => 2,
            Algorithm::Blake3 => 3,
            Algorithm::Sha256 => 4,
        }
    }

    /// The algorithm with that number on disk, if there is one.
    pub fn from_id(id: u8) -> Option<Algorithm> {
        Algorithm::ALL
            .into_iter()
            .find(|algorithm| algorithm.id() == id)
    }

    /// Appends the checksum of `data` to `out`: [`Self::width`] bytes.
    pub fn append(self, data: &[u8], out: &mut Vec<u8>) {
        match self {
            Algorithm::Crc32 => out.extend_from_slice(&crc32fast::hash(data).to_le_bytes()),
            Algorithm::Xxh3 => {
                out.extend_from_slice(&xxhash_rust::xxh3::xxh3_64(data).to_le_bytes());
            }
            Algorithm::Blake3 => out.extend_from_slice(blake3::hash(data).as_bytes()),
            Algorithm::Sha256 => out.extend_from_slice(&sha2::Sha256::digest(data)),
        }
    }

    /// Whether `sum` is the checksum of `data`.
    pub fn matches(self, data: &[u8], sum: &[u8]) -> bool {
        match self {
            Algorithm::Crc32 => sum == crc32fast::hash(data).to_le_bytes(),
            Algorithm::Xxh3 => sum == xxhash_rust::xxh3::xxh3_64(data).to_le_bytes(),
            Algorithm::Blake3 => sum == blake3::hash(data).as_bytes(),
            Algorithm::Sha256 => sum == sha2::Sha256::digest(data).as_slice(),
        }
    }

    /// The checksum as 64 bits, for structures that have eight bytes for it: CRC-32 zero-extended,
    /// the cryptographic ones cut to their first eight bytes.
    pub fn sum64(self, parts: &[&[u8]]) -> u64 {
        match self {
            Algorithm::Crc32 => {
                let mut hasher = crc32fast::Hasher::new();
                parts.iter().for_each(|part| hasher.update(part));
                u64::from(hasher.finalize())
            }
            Algorithm::Xxh3 => {
                let mut hasher = xxhash_rust::xxh3::Xxh3::new();
                parts.iter().for_each(|part| hasher.update(part));
                hasher.digest()
            }
            Algorithm::Blake3 => {
                let mut hasher = blake3::Hasher::new();
                parts.iter().for_each(|part| {
                    hasher.update(part);
                });
                first_eight(hasher.finalize().as_bytes())
            }
            Algorithm::Sha256 => {
                let mut hasher = sha2::Sha256::new();
                parts.iter().for_each(|part| hasher.update(part));
                first_eight(&hasher.finalize())
            }
        }
    }
}

fn first_eight(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .take(8)
        .rev()
        .fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_check_values_hold() {
        // "123456789" is the check input of the CRC catalogue; the others are from the papers.
        let mut sum = Vec::new();
        Algorithm::Crc32.append(b"123456789", &mut sum);
        assert_eq!(sum, 0xcbf4_3926_u32.to_le_bytes());
        sum.clear();
        Algorithm::Xxh3.append(b"", &mut sum);
        assert_eq!(sum, 0x2d06_8005_38d3_94c2_u64.to_le_bytes());
        sum.clear();
        Algorithm::Blake3.append(b"", &mut sum);
        assert_eq!(sum[..4], [0xaf, 0x13, 0x49, 0xb9]);
        sum.clear();
        Algorithm::Sha256.append(b"", &mut sum);
        assert_eq!(sum[..4], [0xe3, 0xb0, 0xc4, 0x42]);
    }

    #[test]
    fn a_flipped_bit_is_noticed_by_every_algorithm() {
        let data: Vec<u8> = (0..4096_u32).map(|n| (n % 251) as u8).collect();
        for algorithm in Algorithm::ALL {
            let mut sum = Vec::new();
            algorithm.append(&data, &mut sum);
            assert_eq!(sum.len(), algorithm.width());
            assert!(algorithm.matches(&data, &sum));
            let mut bad = data.clone();
            bad[4095] ^= 0x80;
            assert!(!algorithm.matches(&bad, &sum), "{}", algorithm.name());
            assert_ne!(algorithm.sum64(&[&data]), algorithm.sum64(&[&bad]));
            let (head, tail) = data.split_at(100);
            assert_eq!(algorithm.sum64(&[&data]), algorithm.sum64(&[head, tail]));
            assert_eq!(Algorithm::from_id(algorithm.id()), Some(algorithm));
            assert_eq!(Algorithm::from_name(algorithm.name()), Some(algorithm));
        }
    }
}
