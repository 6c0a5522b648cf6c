#!/bin/sh
# From a folder of bare pictures to a trained model.
# Each step may be interrupted and repeated; `sdtui data undo pictures` takes captions and tags back.
set -eu
PICTURES=${PICTURES:-pictures}                            # pictures and nothing else
META=${META:-meta.json}                                   # captions and tags are gathered here
RUN=${RUN:-run.toml}                                      # has train_data_dir = "pictures", in_json = "meta.json"
BLIP=${BLIP:-Salesforce/blip-image-captioning-large}      # hub id or a folder
TAGGER=${TAGGER:-SmilingWolf/wd-v1-4-convnext-tagger-v2}  # hub id or a folder

sdtui data caption "$PICTURES" --caption_weights "$BLIP" --mode skip
sdtui data tag "$PICTURES" --repo_id "$TAGGER" --remove_underscore --mode skip
sdtui data merge "$PICTURES" "$META"
sdtui data clean "$META" "$META"
sdtui data stats "$META"
sdtui check "$RUN"
sdtui data cache "$RUN"
sdtui train "$RUN"
