/** The files that can be downloaded. */
import { boundsOf, classOf, type Snapshot } from "./model";
import type { Picture } from "./picture";
import { runLengths } from "./raster";

/** Return the objects as GeoJSON in pixels. QuPath opens it, with the classes. */
export function geojson(snapshot: Snapshot): string {
  const features = snapshot.items.map((item) => {
    const { name, color } = classOf(snapshot, item.classId);
    const properties = {
      objectType: "annotation",
      classification: { name, color: channels(color) },
      number: item.id,
      quality: item.quality,
      area: item.area,
    };
    return { type: "Feature", id: uuid(), geometry: item.geometry, properties };
  });
  return JSON.stringify({ type: "FeatureCollection", features });
}

/** Return the objects as a COCO file: their masks are uncompressed run lengths. */
export function coco(snapshot: Snapshot, picture: Picture): string {
  const { width, height, name } = picture;
  const annotations = snapshot.items.map((item) => {
    const [x1, y1, x2, y2] = boundsOf(item.geometry);
    return {
      id: item.id,
      image_id: 1,
      category_id: item.classId,
      segmentation: { size: [height, width], counts: runLengths(item.geometry, width, height) },
      area: item.area,
      bbox: [x1, y1, x2 - x1, y2 - y1],
      iscrowd: 0,
      score: item.quality,
    };
  });
  const categories = snapshot.classes.map(({ id, name }) => ({ id, name }));
  const images = [{ id: 1, file_name: name, width, height }];
  return JSON.stringify({ images, categories, annotations });
}

export function download(content: BlobPart, name: string, type: string): void {
  const url = URL.createObjectURL(new Blob([content], { type }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

function channels(color: string): number[] {
  return [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
}

/** `crypto.randomUUID` is missing on plain HTTP; random values are there. */
function uuid(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = ((bytes[6] as number) & 0x0f) | 0x40;
  bytes[8] = ((bytes[8] as number) & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}
