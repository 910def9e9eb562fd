/**
 * Takes the Exif data out of a picture that is to be shown.
 *
 * Browsers turn a picture as its Exif data say, and createImageBitmap cannot be told not to. The
 * server does not turn it, and its coordinates are those of the pixels as they are stored.
 */

type Part = [start: number, end: number];

/** Return the picture without its Exif data. */
export async function withoutExif(file: Blob): Promise<Blob> {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const view = new DataView(bytes.buffer);
  const name = (at: number) => String.fromCharCode(...bytes.subarray(at, at + 4));
  if (bytes[0] === 0xff && bytes[1] === 0xd8) return without(file, exifOfJpeg(view, name));
  if (name(1).startsWith("PNG")) return without(file, exifOfPng(view, name));
  if (name(0) === "RIFF" && name(8) === "WEBP") return webpWithoutExif(file, view, name);
  return file;
}

type NameAt = (at: number) => string;

/** A JPEG is a row of segments: a marker of 2 bytes, a length that counts itself, content. */
function exifOfJpeg(view: DataView, name: NameAt): Part | null {
  for (let at = 2; at + 10 < view.byteLength && view.getUint8(at) === 0xff; ) {
    const marker = view.getUint8(at + 1);
    if (marker === 0xff) {
      at += 1; // a byte that fills up
      continue;
    }
    if (marker === 0xda) return null; // here the pixels begin
    const end = at + 2 + view.getUint16(at + 2);
    if (marker === 0xe1 && name(at + 4) === "Exif") return [at, end];
    at = end;
  }
  return null;
}

/** A PNG is a row of chunks: the length of the content, a name, content, a checksum. */
function exifOfPng(view: DataView, name: NameAt): Part | null {
  for (let at = 8; at + 12 <= view.byteLength; ) {
    const end = at + 12 + view.getUint32(at);
    if (name(at + 4) === "eXIf") return [at, end];
    at = end;
  }
  return null;
}

/** A WebP is a row of chunks: a name, the length of the content, content up to an even length. */
function webpWithoutExif(file: Blob, view: DataView, name: NameAt): Blob {
  for (let at = 12; at + 8 <= view.byteLength; ) {
    const length = view.getUint32(at + 4, true);
    const end = at + 8 + length + (length % 2);
    if (name(at) === "EXIF") {
      const size = new DataView(new ArrayBuffer(4));
      size.setUint32(0, view.getUint32(4, true) - (end - at), true);
      return new Blob([file.slice(0, 4), size, file.slice(8, at), file.slice(end)]);
    }
    at = end;
  }
  return file;
}

function without(file: Blob, part: Part | null): Blob {
  return part === null ? file : new Blob([file.slice(0, part[0]), file.slice(part[1])]);
}
