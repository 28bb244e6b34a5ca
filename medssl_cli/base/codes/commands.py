"""Codes of a command as a whole: options, recipes, caches, runs, models, processes."""

from typing import Final

from medssl_cli.base.codes.code import Code

COMMAND_CODES: Final[dict[str, Code]] = {
    # Recipes, options, plugins
    "E_USAGE": Code("An option or argument cannot be used as given", "medssl COMMAND --help says what it takes"),
    "E_RECIPE": Code(
        "A recipe has unknown keys, wrong types or impossible values",
        "medssl recipes show NAME prints a recipe that works; medssl recipes check tries yours",
    ),
    "E_RECIPE_NOT_FOUND": Code(
        "No recipe of that name or path", "check the spelling; medssl recipes ls lists those that come with medssl"
    ),
    "E_RECIPE_CHANGED": Code(
        "The run directory was started with another recipe or other data",
        "choose another folder with --run, or remove this one; more steps or minutes may be asked of the same run",
    ),
    "E_PLAN_MEMORY": Code(
        "Not even the smallest plan for a task fits into the memory that it may take",
        "allow more with medssl plan --memory, or write a recipe with a smaller data.crop_size and backbone",
    ),
    "E_LABEL_CLASSES": Code(
        "The classes of a recipe and what label maps call their values contradict each other",
        "name in task.classes the names that the label maps have: {kidneys: [left_kidney, right_kidney]}",
    ),
    "W_LABELS_LEFT_OUT": Code(
        "The label maps mark structures that the recipe does not name: there they count as background",
        "nothing if they shall; else name them in task.classes, or in task.ignore if they shall count for nothing",
    ),
    "W_CLASS_ABSENT": Code(
        "No image of a split shows a class: it cannot be learnt there, or its score there says nothing",
        "label more patients, take more of them, try another --fold, or leave the class out of the recipe",
    ),
    "W_VALIDATION_EMPTY": Code(
        "The validation cannot tell good weights from bad ones; the last checkpoint is kept",
        "try another --fold, or a larger max_validation_patients, so that validation images show the structures",
    ),
    "W_BACKBONE_REPLACED": Code(
        "The network of --init replaces the recipe's: a training from scratch by the recipe is of another network",
        "to compare fairly, give the training from scratch the same network, by the --set that the message prints",
    ),
    "E_UNKNOWN_NAME": Code(
        "No method, task or backbone of that name",
        "check the spelling against medssl recipes ls and docs/reference/recipe.md",
    ),
    "E_NOT_FOUND": Code(
        "A path that the command needs does not exist", "check the spelling, and which folder you are in"
    ),
    "E_OUTPUT_EXISTS": Code("The output exists already and differs", "choose another name, or remove it first"),
    "E_OUTPUT_SPECIAL": Code(
        "An output would take the place of a device, a pipe, a link or a folder",
        "name a file that does not exist yet, or a regular one",
    ),
    "E_NO_HOME": Code(
        "The user has no home folder, and the command needs a place that is not named",
        "name the place with its option, or set the variable HOME",
    ),
    # Cache and store
    "E_NO_CACHE": Code(
        "The folder is not a medssl cache", "make one with: medssl ingest PATH; or name another with --cache"
    ),
    "E_CACHE_VERSION": Code(
        "The cache was written by a newer medssl", "install a newer medssl; medssl doctor prints the version you have"
    ),
    "E_CACHE_CORRUPT": Code(
        "A stored file does not match its recorded SHA-256",
        "medssl cache verify --repair removes what is damaged; then run medssl ingest again",
    ),
    "E_CACHE_EMPTY": Code(
        "The cache holds nothing that the command could use",
        "medssl cache ls shows what it has; name another with --cache, or ingest more",
    ),
    "E_CHANNEL_MISSING": Code(
        "Cases lack an image of a channel that the recipe names",
        "ingest those images too; medssl cache ls shows the channels of each case; medssl ingest --channel names one",
    ),
    "E_CHANNEL_AMBIGUOUS": Code(
        "Several images of one case are the same channel, and nothing says which of them is meant",
        "ingest the case with one image of each channel into a new cache",
    ),
    "E_CHANNEL_GRID": Code(
        "Images of one case do not lie on one grid, and no frame of reference says where one is in another",
        "register them and resample them to one grid, then ingest them into a new cache",
    ),
    "W_EXAMPLE_LEFT_OUT": Code(
        "Cases were left out: they lack a channel or labels, have several images for one, or images that lie elsewhere",
        "ingest what is missing; medssl cache ls shows the channels of each case",
    ),
    "E_NO_LABELS": Code(
        "The cache holds no labels of the set that the task asks for",
        "ingest images/ beside labels/; medssl ingest --label-set gives labels the set that the task asks for",
    ),
    "E_TOO_FEW_PATIENTS": Code(
        "Too few patients to split",
        "label more patients, try another medssl finetune --fold, or check medssl ingest --patient-pattern",
    ),
    "E_SPLIT_FILE": Code(
        "A split file cannot be read, or does not say who trains, validates or tests",
        "docs/guides/folds.md shows the files that are taken",
    ),
    "E_SPLIT_NAMES": Code(
        "Names of a split file mean no image of the cache, or images of several patients",
        "ingest those images too, correct the names, or leave them out with medssl finetune --skip-missing",
    ),
    "W_SPLIT_NAMES": Code(
        "Names of a split file mean no image of the cache and were left out, as asked for",
        "nothing if it is meant to be so; else ingest those images too",
    ),
    "E_SPLIT_PATIENT": Code(
        "A split file puts one patient, or one image under two identities, into two parts",
        "give every patient one part; if the patients are wrong, see medssl ingest --patient-pattern",
    ),
    "E_SPLIT_LEAK": Code(
        "The model has seen patients of the split that it would be evaluated on",
        "evaluate its run folder instead: it knows its own test patients",
    ),
    "W_UNEQUAL": Code(
        "Models that are compared differ in more than one may think: network, steps, patients or preprocessing",
        "train them alike, or say so beside the result; the page lists what differs",
    ),
    "W_SPLIT_LEAK": Code(
        "Pre-training has seen images (not labels) of test patients",
        "to be strict, pre-train again: its labelled patients are left out now",
    ),
    "W_LABELS_SEEN": Code(
        "Pre-training has learnt from labels of the patients to validate on: validation looks better than it is",
        "judge by the test patients, who are left out of pre-training; or pre-train without labels",
    ),
    "E_IO": Code(
        "Reading or writing failed: disk full, read-only or damaged",
        "free space or fix permissions, then run the same command again",
    ),
    "E_MEMORY": Code(
        "The machine, or its graphics card, has less memory than this takes",
        "free memory, or ask for less at once: of a training a smaller data.batch_size, data.crop_size or backbone",
    ),
    "E_NO_SPACE": Code(
        "There is not enough free space for what would be stored",
        "free space, store it elsewhere, or ask for less",
    ),
    "E_KEY": Code(
        "The site key is missing, damaged or another one than the cache was made with",
        "restore the key from its backup, name it with medssl ingest --key-file, or choose another --cache",
    ),
    "W_EPHEMERAL_KEY": Code(
        "The cache has a key of its own: patients cannot be linked with other caches",
        "medssl key init makes a key for the whole site; then ingest into a new cache",
    ),
    "E_PRIVACY": Code(
        "The audit found something in the cache that the allow-list does not allow",
        "remove what the audit names and report it: this should not happen",
    ),
    "W_NEAR_DUPLICATE": Code(
        "Two images are nearly the same; if they belong to different patients, one identity is wrong",
        "look at both with medssl cache show; remove a wrong one with medssl cache forget",
    ),
    "W_SUPERSEDED": Code(
        "Two versions of this series are in the cache; only the larger one is used",
        "nothing; the larger image holds every voxel of this one",
    ),
    "E_FORGOTTEN": Code(
        "The patient was removed from this cache on request and is not taken again",
        "nothing; remove the patient from the source to be asked no more",
    ),
    # Training, export, inference
    "E_DIVERGED": Code(
        "The loss is not a finite number",
        "lower optimizer.learning_rate, or look at these items with medssl cache show",
    ),
    "W_STEP_SKIPPED": Code(
        "The loss or the gradient of a training step is not finite, so the step is left out",
        "nothing if it stays the only one; its images and numbers are in RUN/skipped",
    ),
    "W_COLLAPSE": Code(
        "The embeddings have become nearly the same for all images",
        "lower optimizer.learning_rate or raise data.batch_size; a restart is needed, this will not recover",
    ),
    "W_PSEUDO_COLLAPSE": Code(
        "The teacher of a training with unlabelled images has lost a class or gives it everywhere; they count no more",
        "label more patients, lower unlabelled.weight, or leave out medssl finetune --unlabelled",
    ),
    "W_CLUSTERS": Code(
        "A method that learns by clusters uses few of them, or its codes or embeddings say nothing",
        "fewer method.num_prototypes, a smaller method.epsilon, prototypes frozen for longer, or a lower learning rate",
    ),
    "W_NOT_LEARNING": Code(
        "Well into the run the loss is still above that of a predictor that looks at nothing",
        "try a higher optimizer.learning_rate, more data or easier options of the method",
    ),
    "E_PROCESS_LOST": Code(
        "Another process of the same training ended before its time",
        "look for its error above or in its log, then run the same command again to go on from the last checkpoint",
    ),
    "E_COMPILE": Code(
        "The network cannot be compiled on this machine",
        "install a C++ compiler (g++) that torch can find, or use --set compile=false",
    ),
    "E_EXTRA_MISSING": Code(
        "An optional package that an option needs is not installed", "install the extra that the message names"
    ),
    "E_CHECKPOINT_CORRUPT": Code("No checkpoint of the run is intact", "remove the run folder and train again"),
    "W_CHECKPOINT_FALLBACK": Code(
        "The last checkpoint is damaged; the one before it was used", "nothing; look at the disk if it happens again"
    ),
    "E_WEIGHTS_MISMATCH": Code(
        "The weights do not fit the network", "the encoder's backbone and the recipe's must be the same"
    ),
    "E_WEIGHTS_FILE": Code(
        "The file is damaged, or holds other things than the weights of a network",
        "copy it again from where it came; never open a file that asks for code to be run",
    ),
    "E_WEIGHTS_FORM": Code(
        "The weights are of no network that can be imported, or of another than --as says",
        "try medssl weights import with --as auto; docs/guides/weights.md lists what can be imported",
    ),
    "E_WEIGHTS_BRANCH": Code(
        "The file holds two encoders, a student and a teacher", "choose one: --branch student or --branch teacher"
    ),
    "E_WEIGHTS_COVERAGE": Code(
        "The file does not hold every weight of the encoder",
        "get the whole file, or accept random values for the rest with --allow-partial",
    ),
    "W_NOT_HU": Code(
        "A recipe's window in Hounsfield units is laid over images of which it is known that they have none",
        "give data.window_hu null and data.zscore true, or data.modality CT to leave such images out",
    ),
    "W_NO_SPACING": Code(
        "Pictures do not say how large their pixels are, and the recipe asks for a spacing: a pixel counts as 1 mm",
        "give data.spacing_mm null; or ingest the DICOM files of the pictures, which may say it",
    ),
    "W_INIT_CHANNELS": Code(
        "The weights have learnt other channels than the recipe names; each of them takes the place of one",
        "compare with a training from scratch; weights of a pre-training on one unnamed channel have seen any channel",
    ),
    "W_WEIGHTS_ORIGIN": Code(
        "It is not known whose images the weights have seen; test patients may be among them",
        "if the weights are published, read what they were trained on; docs/guides/weights.md lists VoCo's",
    ),
    "E_CANVAS": Code(
        "Crop size, grid and image size do not fit together",
        "choose sizes that fit with --set, and try them with medssl recipes check",
    ),
    "W_CANVAS": Code(
        "Much of what a step of pre-training reads is padding",
        "take the spacing, grid and crop size that medssl recipes plan proposes for the cache",
    ),
    "E_NO_RUN": Code("The folder is not a medssl run", "name a folder under ./runs"),
    "E_RUN_CORRUPT": Code(
        "A file of the run is damaged, or was changed after it was written",
        "restore the run folder from a copy, or remove it and train again",
    ),
    "E_RUN_UNFINISHED": Code(
        "The run has no checkpoint that could be used", "run the command that made it again until it is finished"
    ),
    "E_PARITY": Code(
        "The exported model does not give the trained model's answers",
        "no file was written; please report the recipe and the versions that medssl doctor prints",
    ),
    "W_PROOF_EMPTY": Code(
        "The exported model marks nothing in any image of the proof; masks were compared on noise only",
        "look at the model with medssl evaluate; compare more images with --cases",
    ),
    "W_BEYOND_TRAINING": Code(
        "Spacing, field of view, values or modality of the scan are outside of what the model was trained on",
        "compare the numbers in the report with the model's card: medssl models show; look at the answer with care",
    ),
    "W_UNLIKE_TRAINING": Code(
        "To the model's encoder the scan looks unlike the training images: another body part, device or disease may be "
        "why",
        "look at the scan and at the answer before it is used; the report says how far it is and what the limit is",
    ),
    "E_NO_MODEL": Code("No installed model of that name", "medssl models ls lists those that are installed"),
    "E_MODEL_EXISTS": Code(
        "Another model of the name is installed",
        "medssl models unpack --help says how to replace it",
    ),
    "E_PACK_INVALID": Code("The file is not a pack of models", "make one with: medssl models pack OUT --all"),
    "E_PACK_CORRUPT": Code(
        "A member of the pack does not match its recorded SHA-256",
        "copy the pack again from where it came, or make it again: medssl models pack",
    ),
    "E_MODEL_INVALID": Code("The ONNX file is not a medssl model", "write one with: medssl export RUN model.onnx"),
    "E_RUNTIME": Code(
        "ONNX Runtime failed while it computed, or the model's output is wrong or not finite",
        "look at the scan's values and at the model: medssl evaluate scores it, medssl export makes it anew",
    ),
    "E_MODEL_LIMIT": Code(
        "The model takes more memory or time than a model of its size should",
        "use only models that you trust; medssl infer --help says which options allow one more memory and time",
    ),
    "E_MODEL_CORRUPT": Code(
        "The ONNX file does not match its recorded SHA-256",
        "copy the file again from where it came, or export it again",
    ),
    "E_MODALITY_MISMATCH": Code(
        "The image is of another modality than the model was trained on",
        "use a model that was trained on this modality",
    ),
    "E_DEVICE": Code(
        "The requested device is not available",
        "choose from: auto, cpu, cuda, cuda:N; medssl doctor says what this machine has",
    ),
    "E_GATE_DICE": Code("The Dice is below the required minimum", "the page of the evaluation shows the worst images"),
    "E_GATE_SCORE": Code(
        "The task's own figure is below the required minimum",
        "do not use the result; the page of the evaluation shows every image",
    ),
    "E_GATE_AP": Code(
        "The mean average precision is below the required one",
        "do not use the result; the page shows the worst images",
    ),
    "E_GATE_AUROC": Code(
        "The AUROC is below the required minimum", "the page of the evaluation shows every finding by itself"
    ),
    "E_TASK_EXPORT": Code(
        "An exported model cannot give the answers of this task",
        "score the run folder with medssl evaluate instead",
    ),
    "E_OUTPUT_CHECK": Code(
        "The written mask does not read back identically", "run the command again; if it stays so, please report it"
    ),
    "W_SEG_NOT_WRITTEN": Code(
        "The series' headers do not allow a DICOM SEG; the NIfTI mask was written",
        "use the NIfTI mask; the code beside this one says what the headers lack",
    ),
    "W_RTSTRUCT_NOT_WRITTEN": Code(
        "The series' headers or its mask do not allow an RTSTRUCT; the NIfTI mask was written",
        "use the NIfTI mask; the code beside this one says what is in the way",
    ),
    "W_SR_NOT_WRITTEN": Code(
        "The series' headers do not allow a DICOM SR; the other files say the same",
        "use the other files; the code beside this one says what the headers lack",
    ),
    "W_PREVIEW_NOT_WRITTEN": Code(
        "The picture beside a mask could not be drawn; the mask was written",
        "nothing; medssl infer --no-preview draws none",
    ),
    "E_SCAN_FAILED": Code(
        "Something unexpected failed on one scan; the others are not affected",
        "please report it, with the word that the message names",
    ),
    "E_SEG_SOURCE": Code(
        "The slices of the series have no UIDs that a DICOM SEG could name",
        "use the NIfTI mask; or repair the UIDs in the archive, then run again",
    ),
    "W_SEG_ATTRIBUTES": Code(
        "Attributes of the series break the DICOM standard: in the DICOM SEG they are repaired or left out",
        "nothing for the mask; the message names the attributes, which are worth a look in the archive",
    ),
    "W_NOT_SENT": Code(
        "The outputs of a scan are there, but did not arrive where they were to be sent",
        "the message says why; typed again, the command sends them, and computes nothing",
    ),
    "W_NOT_TAKEN": Code(
        "The outputs of a scan are there, and a place will never take one of them",
        "ask who runs that place to accept its kind, and type the command again; or do without that kind",
    ),
    "E_STILL_CHANGING": Code(
        "A file in a drop folder has been changing for so long that nothing waits for it any more",
        "a log does not belong there; give a large file its name when it is whole, and one that ends in .part before",
    ),
    "E_STORE_REFUSED": Code(
        "A PACS answers, and does not take an object",
        "ask who runs it: may this service store there, and are DICOM Segmentations accepted?",
    ),
    "E_PORT": Code(
        "The service cannot listen on a port", "is another service there? choose another with --port or --monitor-port"
    ),
    "E_SPOOL_BUSY": Code(
        "Another service works on the same queue", "stop it first, or name another folder with --spool"
    ),
    "W_EMPTY_SEGMENTATION": Code(
        "The model found none of its structures", "nothing if it is true; else check the modality and the body part"
    ),
    "E_INTERRUPTED": Code(
        "Stopped cleanly on request; run the same command again to go on", "run the same command again to go on"
    ),
    "E_NOT_SETTLED": Code(
        "The input went on changing while the ingest waited for it to settle",
        "run the same command again when the transfer is over, or with a shorter --settle",
    ),
    "E_NOTHING_USABLE": Code(
        "Nothing in the input could be used",
        "name files or folders that hold images; the report says why each was refused",
    ),
    "E_WORKER_CRASH": Code(
        "A worker process died", "run the same command again; if memory is short, with fewer processes at a time"
    ),
    "E_WORKER_OOM": Code(
        "A worker ran out of memory on this input",
        "run the same command again with fewer --workers, or on a machine with more memory",
    ),
    "E_CLUSTER": Code(
        "The cluster cannot be reached or lost its workers",
        "check the scheduler and its workers, then run the same command again",
    ),
    "W_LIB": Code(
        "A library warned; its words are not repeated because they may quote the input",
        "nothing; it is of use in a report to us",
        is_retired=True,
    ),
    "E_DEMO_STEP": Code(
        "A command of the demo failed",
        "its error stands above; run the demo again to go on from here, or with --fresh to start over",
    ),
}
