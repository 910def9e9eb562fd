/** The picture that is open: its file for the server, and its pixels for the screen. */
import { withoutExif } from "./exif";
import { Problem } from "./problem";

export interface Picture {
  name: string;
  file: Blob;
  width: number;
  height: number;
  /** The pixels, and after them their halves, quarters and so on: so that zooming out stays fast. */
  levels: ImageBitmap[];
  /** What the server knows the picture by; null where the browser has no SHA-256. */
  digest: Promise<string | null>;
}

const SMALLEST_LEVEL = 1500;

export async function readPicture(file: File): Promise<Picture> {
  if (file.size === 0) throw new Problem(`“${file.name}” is empty.`, "Choose another file.");
  const head = new Uint8Array(await file.slice(0, 4).arrayBuffer());
  const bitmap = await decode(file, head);
  const levels = [bitmap];
  for (let level = bitmap; Math.max(level.width, level.height) > 2 * SMALLEST_LEVEL; ) {
    level = await createImageBitmap(level, {
      resizeWidth: Math.max(1, Math.round(level.width / 2)),
      resizeHeight: Math.max(1, Math.round(level.height / 2)),
      resizeQuality: "medium",
    });
    levels.push(level);
  }
  const { width, height } = bitmap;
  const digest = digestOf(file);
  return { name: file.name || "picture.png", file, width, height, levels, digest };
}

/** Decode the pixels as they are stored, because the server does not turn pictures by EXIF either. */
async function decode(file: File, head: Uint8Array): Promise<ImageBitmap> {
  try {
    return await createImageBitmap(await withoutExif(file));
  } catch {
    const [a, b] = head;
    if ((a === 0x49 && b === 0x49) || (a === 0x4d && b === 0x4d)) {
      throw new Problem(
        `Browsers cannot show “${file.name}”, because it is a TIFF.`,
        "Save it as PNG to use it here. QuPath, Python and curl can send TIFFs as they are.",
      );
    }
    throw new Problem(
      `“${file.name}” is not a picture that this browser can read, or it is damaged.`,
      "Choose a PNG, JPEG, WebP or BMP file.",
    );
  }
}

/** Return `sha256:` and the SHA-256 of the file, which the server knows the picture by. */
async function digestOf(file: Blob): Promise<string | null> {
  // Browsers have no SHA-256 on plain HTTP, except on the machine itself.
  if (!globalThis.isSecureContext) return null;
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", await file.arrayBuffer()));
  return "sha256:" + Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
