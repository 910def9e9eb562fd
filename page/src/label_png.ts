/** Writes a grey PNG of 16 bits, in which each object has a number of its own. */
import type { Item } from "./model";
import { Problem } from "./problem";
import { rowsOf } from "./raster";

const MOST = 65_535;

/**
 * Return the picture of labels: 0 is background; an object has its number in the list.
 *
 * Where objects overlap, the smaller one covers; of two with the same area, the later one.
 */
export async function labelPng(items: Item[], width: number, height: number): Promise<Blob> {
  const highest = items.reduce((most, { id }) => Math.max(most, id), 0);
  if (highest > MOST) {
    throw new Problem(
      `A label picture of 16 bits holds numbers up to ${MOST}, and one of the objects is ${highest}.`,
      "Delete some, or download GeoJSON or COCO.",
    );
  }
  // Each row begins with a byte that names its filter: 0 is none. Samples are big-endian.
  const stride = 1 + 2 * width;
  const rows = new Uint8Array(stride * height);
  const bySize = [...items].sort((one, other) => other.area - one.area);
  for (const { geometry, id: label } of bySize) {
    rowsOf(geometry, width, height, (y, x1, x2) => {
      for (let at = y * stride + 1 + 2 * x1; at < y * stride + 1 + 2 * x2; at += 2) {
        rows[at] = label >> 8;
        rows[at + 1] = label & 255;
      }
    });
  }
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header.set([16, 0, 0, 0, 0], 8); // 16 bits, grey, and the only methods that there are
  const signature = new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]);
  const parts = [signature, chunk("IHDR", header), chunk("IDAT", await deflate(rows))];
  return new Blob([...parts, chunk("IEND", new Uint8Array(0))], { type: "image/png" });
}

async function deflate(data: Uint8Array<ArrayBuffer>): Promise<Uint8Array<ArrayBuffer>> {
  const stream = new Blob([data]).stream().pipeThrough(new CompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function chunk(name: string, data: Uint8Array): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(12 + data.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, data.length);
  bytes.set(new TextEncoder().encode(name), 4);
  bytes.set(data, 8);
  view.setUint32(8 + data.length, crc32(bytes.subarray(4, 8 + data.length)));
  return bytes;
}

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? 0xedb88320 ^ (crc >>> 1) : crc >>> 1;
  return crc;
});

function crc32(bytes: Uint8Array): number {
  let crc = ~0;
  for (const byte of bytes) crc = (TABLE[(crc ^ byte) & 255] as number) ^ (crc >>> 8);
  return ~crc >>> 0;
}
