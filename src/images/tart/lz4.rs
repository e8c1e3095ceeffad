//! LZ4 as Apple frames it (`COMPRESSION_LZ4`): blocks that may refer to what the block before them held.
//!
//! A stream is `bv41` (decoded length, encoded length, an LZ4 block), or `bv4-` (length, plain bytes), as often as it
//! takes, then `bv4$` and nothing after it. Lengths are 32 bits, little-endian.
//! <https://developer.apple.com/documentation/compression/compression_lz4>

use lz4_flex::block::{compress_into_with_dict, decompress_into_with_dict, get_maximum_output_size};
use std::io::{self, Read, Write};

/// Bytes in a block, as Apple's encoder cuts them; also how far back a block may refer.
pub const BLOCK: usize = 64 << 10;

/// Longest block that is decoded, in bytes: whoever made the stream must not choose how much memory it takes.
const BLOCK_LIMIT: usize = 4 << 20;

const COMPRESSED: [u8; 4] = *b"bv41";
const PLAIN: [u8; 4] = *b"bv4-";
const END: [u8; 4] = *b"bv4$";

/// Why a stream cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub enum Lz4Error {
    /// It ends in the middle.
    #[error("the compressed data ends before its end mark")]
    Truncated,
    /// Something follows the end.
    #[error("something follows the end mark of the compressed data")]
    Trailing,
    /// It is no such stream.
    #[error("the compressed data has no block where one must begin")]
    Magic,
    /// A block claims to be longer than any is.
    #[error("a block of the compressed data claims {0} bytes; at most {BLOCK_LIMIT} are decoded")]
    TooLong(usize),
    /// A block is damaged.
    #[error("a block of the compressed data is damaged")]
    Damaged,
    /// What it is read from failed.
    #[error("the compressed data cannot be read")]
    Read(#[source] io::Error),
}

/// Decodes a stream block by block.
#[derive(Debug)]
pub struct Decoder<R> {
    source: R,
    /// What the next block may refer to: the last 64 KiB that were decoded.
    history: Vec<u8>,
    block: Vec<u8>,
    encoded: Vec<u8>,
    /// The stream's end was seen.
    ended: bool,
}

impl<R: Read> Decoder<R> {
    /// A decoder of a stream from its beginning.
    pub const fn new(source: R) -> Self {
        Self { source, history: Vec::new(), block: Vec::new(), encoded: Vec::new(), ended: false }
    }

    /// The next block; `None` at the stream's end, when the source is at its end too.
    ///
    /// # Errors
    /// The stream is damaged, or its source fails.
    pub fn next_block(&mut self) -> Result<Option<&[u8]>, Lz4Error> {
        if self.ended {
            return Ok(None);
        }
        self.remember();
        match self.word()? {
            COMPRESSED => {
                let (decoded, encoded) = (self.length()?, self.length()?);
                self.fill_encoded(encoded)?;
                self.block.resize(decoded, 0);
                let written = decompress_into_with_dict(&self.encoded, &mut self.block, &self.history);
                if written.ok() != Some(decoded) {
                    return Err(Lz4Error::Damaged);
                }
            }
            PLAIN => {
                let length = self.length()?;
                self.block.resize(length, 0);
                read_exactly(&mut self.source, &mut self.block)?;
            }
            END => {
                self.ended = true;
                return self.at_the_end().map(|()| None);
            }
            _ => return Err(Lz4Error::Magic),
        }
        Ok(Some(&self.block))
    }

    /// The source, read as far as the stream was decoded.
    pub fn into_inner(self) -> R {
        self.source
    }

    /// What was decoded last becomes history. A whole block is all of it: the buffers change places.
    fn remember(&mut self) {
        if self.block.len() >= BLOCK {
            std::mem::swap(&mut self.history, &mut self.block);
            let beyond = self.history.len() - BLOCK;
            self.history.drain(..beyond);
        } else {
            self.history.extend_from_slice(&self.block);
            let beyond = self.history.len().saturating_sub(BLOCK);
            self.history.drain(..beyond);
            self.block.clear();
        }
    }

    fn fill_encoded(&mut self, length: usize) -> Result<(), Lz4Error> {
        self.encoded.resize(length, 0);
        read_exactly(&mut self.source, &mut self.encoded)
    }

    fn word(&mut self) -> Result<[u8; 4], Lz4Error> {
        let mut word = [0; 4];
        read_exactly(&mut self.source, &mut word)?;
        Ok(word)
    }

    fn length(&mut self) -> Result<usize, Lz4Error> {
        let length = u32::from_le_bytes(self.word()?) as usize;
        if length <= BLOCK_LIMIT { Ok(length) } else { Err(Lz4Error::TooLong(length)) }
    }

    fn at_the_end(&mut self) -> Result<(), Lz4Error> {
        match read_exactly(&mut self.source, &mut [0]) {
            Err(Lz4Error::Truncated) => Ok(()),
            Ok(()) => Err(Lz4Error::Trailing),
            Err(error) => Err(error),
        }
    }
}

fn read_exactly(source: &mut impl Read, buffer: &mut [u8]) -> Result<(), Lz4Error> {
    source.read_exact(buffer).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Lz4Error::Truncated,
        _ => Lz4Error::Read(error),
    })
}

/// Encodes a stream.
#[derive(Debug)]
pub struct Encoder<W> {
    target: W,
    history: Vec<u8>,
    pending: Vec<u8>,
    encoded: Vec<u8>,
}

impl<W: Write> Encoder<W> {
    /// An encoder of a stream from its beginning.
    pub fn new(target: W) -> Self {
        let encoded = vec![0; get_maximum_output_size(BLOCK)];
        Self { target, history: Vec::new(), pending: Vec::with_capacity(BLOCK), encoded }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// The target fails.
    pub fn push(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = bytes.len().min(BLOCK - self.pending.len());
            self.pending.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            if self.pending.len() == BLOCK {
                self.flush_block()?;
            }
        }
        Ok(())
    }

    /// Writes what is left and the end; returns the target.
    ///
    /// # Errors
    /// The target fails.
    pub fn finish(mut self) -> io::Result<W> {
        if !self.pending.is_empty() {
            self.flush_block()?;
        }
        self.target.write_all(&END)?;
        Ok(self.target)
    }

    fn flush_block(&mut self) -> io::Result<()> {
        let length = u32::try_from(self.pending.len()).expect("a block is 64 KiB at most");
        let encoded = compress_into_with_dict(&self.pending, &mut self.encoded, &self.history)
            .expect("the buffer has room for the worst case");
        if encoded < self.pending.len() {
            self.target.write_all(&COMPRESSED)?;
            self.target.write_all(&length.to_le_bytes())?;
            self.target.write_all(&u32::try_from(encoded).expect("it is shorter than a block").to_le_bytes())?;
            self.target.write_all(&self.encoded[..encoded])?;
        } else {
            self.target.write_all(&PLAIN)?;
            self.target.write_all(&length.to_le_bytes())?;
            self.target.write_all(&self.pending)?;
        }
        // Only the last block is shorter than the history it leaves.
        std::mem::swap(&mut self.history, &mut self.pending);
        self.pending.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::new());
        encoder.push(bytes).expect("memory");
        encoder.finish().expect("memory")
    }

    fn decode(stream: &[u8]) -> Result<Vec<u8>, Lz4Error> {
        let (mut decoder, mut all) = (Decoder::new(stream), Vec::new());
        while let Some(block) = decoder.next_block()? {
            all.extend_from_slice(block);
        }
        Ok(all)
    }

    /// A block written by hand, as the LZ4 block format says: one match that reaches `back` bytes, then five literals.
    fn match_block(back: u16, length: usize, tail: &[u8; 5]) -> Vec<u8> {
        let mut block = vec![0x0f];
        block.extend(back.to_le_bytes());
        let mut rest = length - 4 - 15;
        while rest >= 255 {
            block.push(255);
            rest -= 255;
        }
        block.push(u8::try_from(rest).expect("below 255"));
        block.push(0x50);
        block.extend(tail);
        block
    }

    fn framed(magic: [u8; 4], decoded: Option<usize>, body: &[u8]) -> Vec<u8> {
        let mut frame = magic.to_vec();
        for length in decoded.into_iter().chain([body.len()]) {
            frame.extend(u32::try_from(length).expect("short").to_le_bytes());
        }
        frame.extend(body);
        frame
    }

    #[test]
    fn a_block_refers_to_the_block_before_it() {
        let first: Vec<u8> = (0..BLOCK).map(|at| (at * 7 % 251) as u8).collect();
        let mut stream = framed(PLAIN, None, &first);
        stream.extend(framed(COMPRESSED, Some(105), &match_block(65_113, 100, b"hello")));
        stream.extend(END);
        let decoded = decode(&stream).expect("well-formed");
        let begin = BLOCK - 65_113;
        assert_eq!(decoded[BLOCK..BLOCK + 100], first[begin..begin + 100]);
        assert_eq!(&decoded[BLOCK + 100..], b"hello");
    }

    #[test]
    fn short_blocks_make_one_history() {
        let mut stream = framed(PLAIN, None, b"abcdefghij");
        stream.extend(framed(PLAIN, None, b"klmnopqrst"));
        stream.extend(framed(COMPRESSED, Some(25), &match_block(20, 20, b"hello")));
        stream.extend(END);
        assert_eq!(decode(&stream).expect("well-formed"), b"abcdefghijklmnopqrstabcdefghijklmnopqrsthello");
    }

    #[test]
    fn nothing_is_a_stream_too() {
        assert_eq!(encode(b""), END);
        assert_eq!(decode(&END).expect("well-formed"), b"");
    }

    #[test]
    fn our_blocks_use_the_block_before_them() {
        let noise: Vec<u8> = (0..BLOCK as u64)
            .flat_map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15)).to_le_bytes())
            .take(60_000)
            .collect();
        let once = encode(&noise).len();
        let twice = encode(&[noise.clone(), noise].concat()).len();
        assert!(twice < once + once / 4, "{twice} of {once}");
    }

    #[test]
    fn what_is_no_stream_is_refused_by_its_fault() {
        let good = encode(&vec![7; 100_000]);
        for cut in [0, 3, 8, 12, 20, good.len() - 4, good.len() - 1] {
            assert!(matches!(decode(&good[..cut]), Err(Lz4Error::Truncated)), "cut at {cut}");
        }
        assert!(matches!(decode(&[good.as_slice(), b"x"].concat()), Err(Lz4Error::Trailing)));
        assert!(matches!(decode(b"PK\x03\x04"), Err(Lz4Error::Magic)));
        let huge = [COMPRESSED.as_slice(), &u32::MAX.to_le_bytes(), &[1, 0, 0, 0, 0]].concat();
        assert!(matches!(decode(&huge), Err(Lz4Error::TooLong(_))));
        let before_the_beginning = framed(COMPRESSED, Some(105), &match_block(9, 100, b"hello"));
        assert!(matches!(decode(&before_the_beginning), Err(Lz4Error::Damaged)));
        let wrong_length = [framed(COMPRESSED, Some(104), &[0x50, 1, 2, 3, 4, 5]), END.to_vec()].concat();
        assert!(matches!(decode(&wrong_length), Err(Lz4Error::Damaged)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_encoded_is_decoded(seed in proptest::collection::vec(any::<u8>(), 0..300), times in 0_usize..900) {
            let bytes = seed.repeat(times);
            prop_assert_eq!(decode(&encode(&bytes)).expect("our own"), bytes);
        }

        #[test]
        fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let _ = decode(&bytes);
            let _ = decode(&[COMPRESSED.as_slice(), &[64, 0, 0, 0, 32, 0, 0, 0], &bytes].concat());
        }

        #[test]
        fn damage_is_no_panic(at in 0_usize..2000, to in any::<u8>()) {
            let text: Vec<u8> = (0..20_000_u32).flat_map(|n| n.to_string().into_bytes()).collect();
            let mut stream = encode(&text);
            let at = at % stream.len();
            stream[at] = to;
            let _ = decode(&stream);
        }
    }
}
