#!/bin/sh
# Puts the archives of $SAMSERVE_MODELS into $SAMSERVE_MODEL_STORE. It copies an archive that is in
# the image. Otherwise it downloads the weights and builds the archive. It keeps an archive that is
# up to date.
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
