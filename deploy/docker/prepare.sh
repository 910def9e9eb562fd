#!/bin/sh
# Puts the archives of $SAMSERVE_MODELS into $SAMSERVE_MODEL_STORE: the image's own where it has
# one baked in, else built from fetched weights. What is there and up to date stays.
set -eu
for type in $SAMSERVE_MODELS; do
    if [ -e "model_store/$type.mar" ]; then
        cp "model_store/$type.mar" "$SAMSERVE_MODEL_STORE/.$type.mar"
        mv "$SAMSERVE_MODEL_STORE/.$type.mar" "$SAMSERVE_MODEL_STORE/$type.mar"
    else
        weights="$SAMSERVE_MODEL_STORE/weights"
        python -m samserve_launcher weights "$type" --weights-dir "$weights"
        python -m samserve_launcher archive "$type" --weights-dir "$weights" \
            --model-store "$SAMSERVE_MODEL_STORE"
    fi
done
